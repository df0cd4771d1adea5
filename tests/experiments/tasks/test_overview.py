"""One page over several experiments: what each says of a claim, its tables and figures, and what is missing."""

import re

import browser
import pytest
from synthetic_runs import write_run

from amg.metrics import Share
from amg.worlds.drawings import training_images
from experiments.cli.main import main
from experiments.report.page import write_report
from experiments.tables.table import render
from experiments.tasks import overview
from experiments.tasks.overview import by_claim

TABLE = render(
    {"title": "Copies & more", "rows": [{"row": "none", "label": "none"}],
     "columns": ["copies"]},
    {"none": {"n": 8, "copies": Share(3, 8)}},
)  # fmt: skip


def claim(verdict, numbers, text="AMG clears all copies"):
    return {"claim": text, "verdict": verdict, "numbers": numbers}


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Reports of two experiments, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, said in (("table1", [claim("holds", "3/8 → 0/8")]), ("table2", [claim("does not hold", "<3/8>")])):
        write_run(tmp_path / "runs" / name / "none", "none", {0, 1, 4})
        write_report(tmp_path / "runs" / name, tables=[TABLE], claims=said, bank_images=training_images(32).images)
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
    assert {"table1/report.html", "table2/report.html", "table1/none/pictures/7.png"} < set(links)
    assert len(links) == 2 + 2 * 8, "each report, each sample's picture"
    assert all((reports / link).is_file() for link in links)
    assert "Not run: table3, table4, table5, figure3, figure4, rivals, mine." in page
    assert page.count("The last command of this experiment failed") == 1


def test_each_experiment_shows_its_nearest_pairs_and_a_share_of_each_run_s_samples(reports, monkeypatch):
    write_run(reports / "table2" / "full", "full", set())
    write_report(reports / "table2", claims=[claim("holds", "")], bank_images=training_images(32).images)
    monkeypatch.setattr(overview, "SAMPLES", 10)
    assert main(["task=overview"]) == 0
    page = (reports / "tables.html").read_text()
    first, second = page.split('<section class="experiment"')[1:]
    assert first.count('<figure class="pair">') == 8 and first.count("· copy") == 3
    assert second.count('<figure class="pair">') == 2 * 8
    assert "Every sample" in first and first.count("pictures/") == 8
    assert "Samples, 5 of 8 of each run" in second and second.count("pictures/") == 10


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
    assert 'href="../runs/table2/none/pictures/0.png"' in page


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


ACTIONS = """
out.claims = [...document.querySelectorAll("#claims li")].map(li => ({
  claim: li.querySelector("p").textContent,
  said: [...li.querySelectorAll(".said a, .verdict, .numbers")].map(one => one.textContent)}));
out.closed = [...document.querySelectorAll("#mini details")].every(one => !one.open);
const part = document.querySelector("#mini .of-samples"), other = document.querySelector("#large tbody").textContent;
part.querySelector("summary").click();
const heads = [...part.querySelectorAll("th")], at = name => heads.findIndex(h => h.textContent.trim() === name);
const shown = () => [...part.querySelectorAll("tbody tr")].filter(row => !row.hidden);
const column = name => shown().map(row => row.cells[at(name)].textContent);
heads[at("similarity")].querySelector("button").click(); out.similarity = column("similarity").map(Number);
heads[at("seed")].querySelector("button").click(); heads[at("seed")].querySelector("button").click();
out.seeds = column("seed").map(Number);
const box = part.querySelector("input");
box.value = "full"; box.dispatchEvent(new Event("input"));
out.runs = column("run"); out.count = part.querySelector(".count").textContent;
out.other = document.querySelector("#large tbody").textContent === other;
out.pairs = document.querySelectorAll("#mini .pair").length;
document.querySelectorAll("details").forEach(one => one.open = true);
"""


@pytest.mark.slow
@pytest.mark.browser
def test_browser_reads_the_claims_and_sorts_and_filters_each_experiment_s_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])
    small = ["sampler.steps=4", "metrics.extractor=none", "metrics.scorer=none", "trainer=cpu"]
    for name, n in (("mini", 8), ("large", 12)):
        assert main(["-m", "guidance=none,full", f"name={name}", f"n_samples={n}", *small]) == 0
    assert main(["task=overview", "task.experiments=[mini,large]"]) == 0
    found = browser.found(tmp_path / "runs" / "tables.html", ACTIONS, tmp_path)
    assert found["claims"] and all(len(one["said"]) % 3 == 0 and one["said"] for one in found["claims"])
    assert {one["said"][0] for one in found["claims"]} <= {"mini", "large"}
    assert {one["said"][1] for one in found["claims"]} <= {"holds", "does not hold", "not measured"}
    assert found["closed"] and found["similarity"] == sorted(found["similarity"]) and len(found["similarity"]) == 16
    assert found["seeds"] == [seed for seed in range(7, -1, -1) for _ in range(2)]
    assert found["runs"] == ["full"] * 8 and found["count"] == "8 of 16 samples"
    assert found["other"], "a table leaves the others alone"
    assert found["pairs"] > 4 and found["broken"] == 0 and found["wide"] <= 0
