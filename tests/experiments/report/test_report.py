"""The report is one page that needs nothing else, shows what was measured and can be worked with."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from PIL import Image
from synthetic_runs import write_run

from amg.metrics import Share
from amg.worlds.drawings import training_images
from experiments.report import page as report
from experiments.report.page import find_runs, write_report
from experiments.report.pictures import picture
from experiments.report.samples import inline, share
from experiments.run import records
from experiments.tables.table import render

TABLE = render(
    {"title": "Copies", "rows": [{"row": "none", "label": "Unguided"}],
     "columns": ["copies"]},
    {"none": {"n": 8, "copies": Share(3, 8)}},
)  # fmt: skip
CLAIMS = [
    {"claim": "AMG clears <all> copies", "verdict": "holds", "numbers": "3 of 8, then 0"},
    {"claim": "Rivals trade alignment", "verdict": "not measured", "numbers": ""},
]


class Page(HTMLParser):
    """What a reader and a browser find in the page."""

    def __init__(self, html: str):
        super().__init__()
        self.sources, self.links, self.ids, self.text, self.cells, self.rows = [], [], [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def experiment(tmp_path):
    write_run(tmp_path / "none", "none", {0, 1, 4})
    write_run(tmp_path / "full", "full", set())
    return tmp_path


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def test_page_needs_no_network_and_no_other_file(experiment):
    html = write_report(experiment, tables=[TABLE], claims=CLAIMS, bank_images=training_images(32).images).read_text()
    page = Page(html)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", html)
    assert {link.split("/")[1] for link in page.links} == {"pictures"}  # links to pictures beside it, none is needed


def test_page_says_what_was_run_measured_and_claimed(experiment):
    page = Page(
        write_report(experiment, tables=[TABLE], claims=CLAIMS, bank_images=training_images(32).images).read_text()
    )
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    words = ("python run.py guidance=none", "closed_form", "DDIMScheduler, steps 5", "0 … 7", "8 s", "x86_64, cpu",
             "3/8 (13.7–69.4 %)", "AMG clears <all> copies", "holds", "3 of 8, then 0", "not measured")  # fmt: skip
    assert [word for word in words if word not in page.text] == []


SECTIONS = ["run", "tables", "claims", "figures", "pairs", "samples", "configuration"]


def test_prompts_captions_and_configuration_are_escaped(experiment):
    html = write_report(experiment, claims=CLAIMS, bank_images=training_images(32).images).read_text()
    assert "<b>prompt</b>" not in html and "alert(1)</script>" not in html and "caption <" not in html
    text = Page(html).text
    assert "<b>prompt</b> & 3" in text and "caption <70>" in text and "small & <odd>" in text


def test_nearest_pair_shows_the_sample_and_its_training_picture(experiment):
    images = training_images(32).images
    html = write_report(experiment / "none", bank_images=images, figures=[]).read_text()
    first, second = Page(html).sources[:2]
    assert (pixels(first) == picture(experiment / "none", 0)).all()
    assert (pixels(second) == np.asarray(((images[0].permute(1, 2, 0) + 1) * 127.5).round().byte())).all()
    assert html.count("· copy") == 3


def test_every_sample_has_a_row_linked_to_its_picture(experiment):
    page = Page(write_report(experiment, figures=[]).read_text())
    assert sorted(page.links) == sorted(f"{run}/pictures/{seed}.png" for run in ("none", "full") for seed in range(8))


def test_beyond_the_limit_each_run_shows_a_fair_share_and_the_page_says_so(experiment, monkeypatch):
    monkeypatch.setattr(report, "SAMPLES", 6)
    page = Page(write_report(experiment, figures=[]).read_text())
    assert sorted(page.links) == sorted(f"{run}/pictures/{seed}.png" for run in ("none", "full") for seed in range(3))
    assert "The first by seed, 3 of 8 of each run" in page.text and "Every sample" not in page.text
    write_run(experiment / "short", "spe", set(), n=1)
    text = Page(write_report(experiment, figures=[]).read_text()).text
    assert "full 2 of 8, none 2 of 8, short 1 of 1" in text
    monkeypatch.setattr(report, "SAMPLES", 17)
    text = Page(write_report(experiment, figures=[]).read_text()).text
    assert "Every sample" in text and "The first by seed" not in text


@pytest.mark.parametrize(
    "lengths, limit, each",
    [([504] * 8, 2000, 250), ([10, 100, 100], 110, 50), ([3, 4], 7, 4), ([3, 4], 6, 3), ([], 5, 0), ([5], 0, 0)],
)
def test_shares_are_as_large_as_the_limit_allows(lengths, limit, each):
    assert share(lengths, limit) == each


def test_large_pictures_are_inlined_small():
    rng = np.random.default_rng(0)
    source = inline(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (171, 171) and len(data) < 40_000


def test_run_folder_and_experiment_folder_are_both_understood(experiment):
    assert set(find_runs(experiment)) == {"none", "full"}
    assert find_runs(experiment / "none") == {"none": experiment / "none"}
    with pytest.raises(FileNotFoundError, match="generate samples first"):
        find_runs(experiment / "none" / "pictures")


def test_guided_run_is_drawn_beside_its_unguided_twin_alone(experiment):
    write_run(experiment / "stranger", "full", set(), seed=1000)
    write_report(experiment, bank_images=training_images(32).images)
    drawn = {file.name for file in (experiment / "figures").iterdir()}
    assert drawn == {"similarity-none-full.png", "pictures-none-full.png"}


def test_three_rows_of_one_setting_make_a_scatter_of_the_given_metrics(experiment):
    write_run(experiment / "spe", "spe", {0})
    metrics = {name: {"n": 8, "copies": Share(k, 8), "fid": 9.0 + k} for k, name in enumerate(("none", "full", "spe"))}
    write_report(experiment, metrics=metrics, bank_images=training_images(32).images)
    assert (experiment / "figures" / "privacy-fid-1.png").is_file()


def test_run_that_failed_is_named_and_does_not_stop_the_page(experiment):
    broken = experiment / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text(json.dumps({"status": "failed", "message": "out of memory"}))
    assert (
        "broken: failed, out of memory"
        in Page(write_report(experiment, bank_images=training_images(32).images).read_text()).text
    )


def test_verdict_that_is_none_is_refused(experiment):
    with pytest.raises(ValueError, match="'maybe'"):
        write_report(experiment, claims=[{"claim": "x", "verdict": "maybe", "numbers": ""}])


ACTIONS = """
const heads = [...document.querySelectorAll("#samples th")];
const head = name => heads.find(h => h.textContent.trim() === name);
const column = name => [...document.querySelectorAll("#samples tbody tr")].filter(r => r.offsetParent !== null)
  .map(r => r.cells[heads.indexOf(head(name))].textContent);
const click = name => head(name).querySelector("button").click();
const filter = words => {
  const box = document.querySelector("#samples input");
  box.value = words;
  box.dispatchEvent(new Event("input"));
};
click("steps guided"); out.up = column("steps guided");
click("steps guided"); out.down = column("steps guided"); out.sorted = head("steps guided").getAttribute("aria-sort");
click("nearest"); out.text = column("nearest");
filter("ordinary FULL"); out.filtered = column("seed");
out.count = document.querySelector("#samples .count").textContent;
filter(""); out.all = column("seed").length;
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_browser_sorts_and_filters_samples(experiment, tmp_path, width):
    page = write_report(experiment, tables=[TABLE], claims=CLAIMS, bank_images=training_images(32).images)
    found = browser.found(page, ACTIONS, tmp_path, width)
    steps = [0] * 6 + [1] * 6 + [2] * 4  # seed mod 3 of two runs of eight
    assert [int(s) for s in found["up"]] == steps and [int(s) for s in found["down"]] == steps[::-1]
    assert found["sorted"] == "descending"
    assert found["text"] == sorted(f"caption <{10 * seed}>" for seed in [*range(8)] * 2)
    assert sorted(found["filtered"]) == ["3", "7"] and found["count"] == "2 of 16 samples" and found["all"] == 16
    assert found["wide"] <= 0  # no sideways scrolling of the page
    assert found["broken"] == 0


LONG = """
const box = document.querySelector("#samples"), shown = () => box.querySelectorAll("tbody tr").length;
const count = () => box.querySelector(".count").textContent;
out.first = [shown(), count()];
const seeds = [...box.querySelectorAll("th")].findIndex(head => head.textContent === "seed");
const button = box.querySelectorAll("th")[seeds].querySelector("button");
button.click(); button.click(); out.top = box.querySelector("tbody tr").cells[seeds].textContent;
const filter = box.querySelector("input");
filter.value = "599"; filter.dispatchEvent(new Event("input")); out.filtered = [shown(), count()];
"""


@pytest.mark.browser
def test_browser_shows_the_first_of_a_long_table_and_sorts_and_filters_all_of_it(experiment, tmp_path):
    frame = records.read(experiment / "none")
    rows = [{**row, "prompt": "one"} for row in frame.head(1).to_dict("records")]
    records.append(experiment / "full", [{**rows[0], "seed": 8 + i} for i in range(592)])
    found = browser.found(write_report(experiment / "full", figures=[]), LONG, tmp_path)
    assert found["first"] == [500, "600 samples, 500 shown: filter or sort"]
    assert found["top"] == "599" and found["filtered"] == [1, "1 of 600 samples"]


def test_what_was_typed_stands_for_the_commands_of_all_rows(experiment):
    page = Page(write_report(experiment, command="python run.py -m 'guidance=none,full'", figures=[]).read_text())
    assert page.text.count("python run.py -m 'guidance=none,full'") == 1
    before, after = page.text.split("Configuration")
    assert "guidance=none\n" not in before and "python run.py guidance=none" in after
    alone = Page(write_report(experiment, figures=[]).read_text()).text
    before, after = alone.split("Configuration")
    assert "python run.py guidance=none" in before and "python run.py guidance=none" not in after
