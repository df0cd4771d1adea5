"""A table prints what was measured, with its uncertainty, and never a number that was not."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from amg.metrics import Mean, Share
from experiments.tables.table import TableSpec, render

SPEC = {
    "title": "Table <1>",
    "rows": [
        {"row": "none", "label": "Unguided", "paper": {"top5": 1.58, "copies": 0.93, "fid": 7.44}},
        {"row": "full", "label": "AMG & co"},
        {"row": "spe", "label": "G_spe"},
        {"row": "sim", "label": "G_sim"},
    ],
    "columns": [
        "top5",
        {"key": "copies", "label": "nL2 < 1.4"},
        "fid",
        {"key": "steps", "label": "Steps guided", "format": "percent"},
    ],
    "notes": ["Paper: iDDPM."],
    "distance": True,
}
CAUSE = {"n": 16, "copies": Share(3, 16), "judge_copies": Share(4, 16), "truth_copies": None}
FID = {"n": 512, "extractor": "lite0", "reference": "bank (9 images)", "resize": "none"}
NONE = {"n": 512, "top5": -1.234, "copies": Share(230, 512), "fid": 9.876, "fid_setting": FID,
        "steps": 0.0, "by_cause": {"specific prompt": CAUSE}}  # fmt: skip
FULL = {**NONE, "top5": -1.61, "copies": Share(0, 512), "steps": 0.0312, "by_cause": {}}
RESULTS = {"none": NONE, "full": FULL, "spe": "n/a", "sim": None}


def cells(markdown: str, label: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith((f"| {label} |", f"| *{label}* |")))
    return [cell.strip() for cell in line.strip("| ").split(" | ")][1:]


def test_measured_stands_above_the_papers_numbers():
    markdown = render(SPEC, RESULTS).to_markdown()
    assert cells(markdown, "Unguided") == ["1.23", "230/512 (40.7–49.3 %)", "9.9", "0 %"]
    assert cells(markdown, "Unguided, paper") == ["*1.58*", "*0.93 %*", "*7.44*", "*–*"]
    assert markdown.index("| Unguided |") < markdown.index("Unguided, paper") < markdown.index("AMG & co")


def test_distance_turns_negated_similarities_and_arrows():
    table = render(SPEC, RESULTS)
    assert cells(table.to_markdown(), "AMG & co")[0] == "1.61"
    assert table.head == ("Top5 % ↑", "nL2 < 1.4 ↓", "FID ↓", "Steps guided")
    as_similarity = render({**SPEC, "distance": False}, RESULTS)
    assert cells(as_similarity.to_markdown(), "AMG & co")[0] == "−1.61" and as_similarity.head[0] == "Top5 % ↓"


def test_row_without_result_says_so_and_impossible_row_is_not_applicable():
    markdown = render(SPEC, {"none": NONE, "spe": "n/a"}).to_markdown()
    assert set(cells(markdown, "G_spe")) == {"n/a"}
    assert set(cells(markdown, "G_sim")) == {"not run"} == set(cells(markdown, "AMG & co"))


def test_an_optional_row_is_left_out_where_the_model_cannot_run_it():
    spec = {**SPEC, "rows": [*SPEC["rows"], {"row": "oracle", "label": "oracle", "optional": True}]}
    labels = {kind: [line.label for line in render(spec, {"oracle": kind}).lines] for kind in ("n/a", None)}
    assert "oracle" not in labels["n/a"] and "oracle" in labels[None]


def test_number_that_nobody_measured_is_a_dash():
    broken = {**NONE, "copies": None, "top5": float("nan"), "fid": None}
    assert cells(render(SPEC, {"none": broken}).to_markdown(), "Unguided") == ["–", "–", "–", "0 %"]


def test_a_mean_over_groups_of_seeds_carries_its_interval_and_that_of_one_run_stands_alone():
    means = {"top5": Mean.over([-1.0, -3.0]), "fid": Mean(9.0, 100, 0.5), "steps": Mean.over([0.1, 0.1])}
    assert cells(render(SPEC, {"none": means}).to_markdown(), "Unguided") == ["2.00 ± 12.71", "–", "9.0", "10.0 ± 0 %"]
    written = render(SPEC, {"none": means}).to_csv().splitlines()
    assert "top5_ci" in written[0] and "fid_ci" not in written[0]


def test_every_fid_names_its_n_and_extractor():
    notes = render(SPEC, RESULTS).notes
    assert [note for note in notes if note.startswith("FID")] == [
        "FID: n = 512, extractor lite0, reference bank (9 images), resize none."
    ]
    other = render(SPEC, {**RESULTS, "full": {**FULL, "fid_setting": {**FID, "n": 64}}}).notes
    assert "FID of Unguided: n = 512, extractor lite0, reference bank (9 images), resize none." in other
    assert "FID of AMG & co: n = 64, extractor lite0, reference bank (9 images), resize none." in other


def test_causes_make_one_section_each_with_every_row_counted_within_the_cause():
    columns = ["copies", "judge_copies", "truth_copies"]
    none = {**NONE, "by_cause": {"specific prompt": CAUSE, "duplicated caption": {"n": 0}}}
    table = render({**SPEC, "columns": columns, "rows": SPEC["rows"][1:] + [{"row": "none", "label": "Unguided"}],
                    "causes": ["specific prompt", "duplicated caption"]}, {**RESULTS, "none": none})  # fmt: skip
    assert [(name, len(lines)) for name, lines in table.sections()] == [
        ("specific prompt", 4),
        ("duplicated caption", 4),
    ]
    first, second = ({line.label: line.cells for line in lines} for _, lines in table.sections())
    assert first["Unguided"] == (str(Share(3, 16)), str(Share(4, 16)))
    assert first["G_spe"] == ("n/a",) * 2
    assert second["Unguided"] == ("not run",) * 2


def test_one_row_may_ask_for_one_cause():
    spec = {**SPEC, "rows": [{"row": "none", "label": "Unguided", "cause": "specific prompt"}]}
    table = render(spec, RESULTS)
    assert table.head[0] == "nL2 < 1.4 ↓" and cells(table.to_markdown(), "Unguided")[0] == str(Share(3, 16))


def test_a_column_without_any_number_is_left_out_unless_nothing_was_run():
    without = {**NONE, "steps": None}
    rows = {"rows": SPEC["rows"][:3]}
    assert render(SPEC | rows, {"none": without, "spe": "n/a"}).head == ("Top5 % ↑", "nL2 < 1.4 ↓", "FID ↓")
    assert render(SPEC | rows, {"none": without, "full": FULL}).head[-1] == "Steps guided"
    papers = {"rows": [SPEC["rows"][0]]}  # what the paper alone tells is told
    assert render(SPEC | papers, {"none": {**NONE, "fid": None, "fid_setting": None}}).head[2] == "FID ↓"
    assert len(render({**SPEC, "rows": SPEC["rows"][1:]}, {}).head) == 4


def test_csv_holds_numbers():
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(render(SPEC, RESULTS).to_csv()))}
    assert float(rows["Unguided"]["top5"]) == 1.234
    assert (rows["Unguided"]["copies"], rows["Unguided"]["copies_n"]) == ("230", "512")
    assert float(rows["Unguided"]["copies_low"]) == pytest.approx(Share(230, 512).interval[0])
    assert rows["Unguided, paper"]["source"] == "paper" and float(rows["Unguided, paper"]["fid"]) == 7.44
    assert (rows["G_spe"]["status"], rows["G_sim"]["status"]) == ("n/a", "not run")


def test_latex_escapes_and_every_line_has_as_many_cells():
    latex = render(SPEC, RESULTS).to_latex()
    assert r"AMG \& co" in latex and r"G\_spe" in latex and r"Table $<$1$>$" in latex and "40.7--49.3 \\%" in latex
    lines = [line for line in latex.splitlines() if line.endswith(r"\\") and " & " in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {4}
    assert not set("↑↓–−%") & set(re.sub(r"\\%", "", latex))


def test_html_escapes_and_is_well_nested():
    fragment = render(SPEC, RESULTS).to_html()
    assert "Table &lt;1&gt;" in fragment and "AMG &amp; co" in fragment and "<1>" not in fragment

    class Nesting(HTMLParser):
        stack: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Nesting()
    parser.feed(fragment)
    assert parser.stack == []


def test_terminal_table_shows_labels_in_brackets_as_they_are():
    spec = {**SPEC, "rows": [{"row": "none", "label": "[bold]none[/bold]"}]}
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(spec, RESULTS).to_rich())
    text = console.export_text()
    assert "[bold]none[/bold]" in text and "230/512 (40.7–49.3 %)" in text


def test_files_are_written_where_asked(tmp_path):
    render(SPEC, RESULTS).write(tmp_path / "new" / "folder")
    names = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert names == ["table.csv", "table.md", "table.tex"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"colums": []}, "colums"),
        ({"rows": [{"row": "none", "label": "x", "paper": {"clip": 1.0}}]}, "clip has no column"),
        ({"columns": ["fid", {"key": "top5", "format": "two digits"}, "copies"]}, "two digits"),
        ({"columns": ["top5", "copies", "fd"]}, "no column 'fd'; known: .*fid"),
    ],
)
def test_mistake_in_a_spec_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        TableSpec.model_validate({**SPEC, **change})


def test_result_that_is_no_result_is_refused():
    with pytest.raises(ValueError, match="row 'none'"):
        render(SPEC, {"none": "failed"})


def test_only_causes_that_some_prompt_has_are_sections():
    spec = {
        "title": "by cause",
        "causes": ["duplicated caption", "verbatim"],
        "rows": [{"row": "a", "label": "A"}, {"row": "b", "label": "B"}],
        "columns": ["copies"],
    }
    table = render(spec, {"a": {"n": 9, "by_cause": {"verbatim": {"n": 4, "copies": Share(1, 4)}}}, "b": None})
    assert [(line.section, line.label) for line in table.lines] == [("verbatim", "A"), ("verbatim", "B")]
    assert table.lines[0].cells[0].startswith("1/4")
    assert {line.section for line in render(spec, {}).lines} == {"duplicated caption", "verbatim"}


def test_every_table_says_who_counted_and_beyond_what():
    spec = {
        "title": "t",
        "rows": [{"row": row, "label": row} for row in "ab"],
        "columns": ["top1"],
        "notes": ["Copies: similarity > 0.5."],
    }
    one = {"n": 9, "top1": 0.5, "thresholds": "copies: similarity > 0.5", "notes": ["Guide: sscd (file, official)."]}
    assert render(spec, {"a": one, "b": one}).notes == ("Copies: similarity > 0.5.", "Guide: sscd (file, official).")
