"""One page over several experiments: what each says of a claim, its tables and figures, and what is missing."""

import re

import pytest
from synthetic_runs import write_run

from experiments.cli import main
from experiments.overview import by_claim
from experiments.report import write_report
from experiments.tables import render

TABLE = render(
    {"title": "Copies & more", "rows": [{"row": "none", "label": "none"}],
     "columns": [{"key": "copies", "label": "copies", "format": "share"}]},
    {"none": {"n": 8, "copies": 3}},
)  # fmt: skip


def claim(verdict, numbers, text="AMG clears all copies"):
    return {"claim": text, "verdict": verdict, "numbers": numbers}


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Reports of two experiments, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, said in (("table1", [claim("holds", "3/8 → 0/8")]), ("table2", [claim("does not hold", "<3/8>")])):
        write_run(tmp_path / "runs" / name / "none", "none", {0, 1, 4})
        write_report(tmp_path / "runs" / name, tables=[TABLE], claims=said)
    return tmp_path / "runs"


def test_the_page_holds_claims_tables_and_figures_and_needs_nothing_beside_itself(reports):
    assert main(["task=overview", "task.failed=[table2,mine]"]) == 0
    page = (reports / "tables.html").read_text()
    assert page.count("<p>AMG clears all copies</p>") == 1, "one entry per claim"
    assert page.index("3/8 → 0/8") < page.index("&lt;3/8&gt;")
    assert page.count("Copies &amp; more") == 2
    sources = re.findall(r'\ssrc="([^"]*)', page)
    assert len(sources) >= 4 and all(source.startswith("data:image/png") for source in sources)
    links = [link for link in re.findall(r'\shref="([^"]*)', page) if not link.startswith("#")]
    assert sorted(links) == ["table1/report.html", "table2/report.html"]
    assert all((reports / link).is_file() for link in links)
    assert "Not run: table3, table4, table5, figure3, figure4, rivals, mine." in page
    assert page.count("The last command of this experiment failed") == 1


def test_the_same_experiment_on_another_model_stands_beside_it(reports):
    write_run(reports / "table1-lab_sd" / "none", "none", {0})
    write_report(reports / "table1-lab_sd", tables=[TABLE], claims=[claim("not measured", "7/8 → 1/8")])
    assert main(["task=overview", "task.failed=[table1-lab_sd]"]) == 0
    page = (reports / "tables.html").read_text()
    assert page.index("3/8 → 0/8") < page.index("7/8 → 1/8") < page.index("&lt;3/8&gt;")
    assert 'href="table1-lab_sd/report.html"' in page and "Not run: table3," in page
    assert page.count("The last command of this experiment failed") == 1
    assert main(["task=overview", "task.experiments=[table2]"]) == 0
    assert "table1" not in (reports / "tables.html").read_text()


def test_chosen_experiments_on_a_page_elsewhere(reports, tmp_path):
    assert main(["task=overview", "task.experiments=[table2]", f"output_dir={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "tables.html").read_text()
    assert 'href="../runs/table2/report.html"' in page and "table1" not in page and "Not run" not in page


def test_without_any_report_one_line_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["task=overview"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: task.experiments: no report below runs") and told.count("\n") == 1


def test_a_claim_gathers_what_each_experiment_says_of_it():
    first, last, between = claim("holds", "a"), claim("not measured", "b", text="Z"), claim("holds", "d", text="M")
    found = by_claim(
        {"table1": {"claims": [first, last]}, "rivals": {"claims": [claim("does not hold", "c"), between]}}
    )
    assert list(found) == ["AMG clears all copies", "M", "Z"]
    assert [(one["experiment"], one["verdict"]) for one in found["AMG clears all copies"]] == [
        ("table1", "holds"),
        ("rivals", "does not hold"),
    ]
