"""The demo as a user runs it, at small n: tables, curves, claims and a page that needs nothing beside itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[3] / "run.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    small = ["experiment=demo", "n_samples=24", "sampler.steps=20", "metrics.extractor=none", "trainer=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(RUN), *small], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "demo", done.stdout


@pytest.mark.slow
def test_the_demo_draws_every_row_and_prints_its_five_tables(demo):
    folder, out = demo
    manifests = [json.loads(file.read_text()) for file in folder.glob("*/manifest.json")]
    assert len(manifests) == 13
    assert all(one["status"] == "done" and one["metrics"]["n"] == 24 for one in manifests)
    for title in (
        "Unconditional, without and with AMG",
        "Text, all prompts",
        "A trained network",
        "A flow transformer without classifier-free guidance",
        "Text, cause by cause",
    ):
        assert title in out
    for number in (1, 2, 3, 4, 5):
        assert {"table.md", "table.csv"} <= {file.name for file in (folder / f"table-{number}").iterdir()}


@pytest.mark.slow
def test_without_guidance_planted_captions_are_copied_and_with_amg_fewer(demo):
    folder, _ = demo
    rows = {}
    for file in folder.glob("*/manifest.json"):
        one = json.loads(file.read_text())
        if one["model"] == "closed_form":
            rows[one["guidance"], one["s0"]] = one["metrics"]["truth_copies"]["count"]
    assert rows["none", 3.0] >= 4
    assert rows["full", 3.0] < rows["none", 3.0]


@pytest.mark.slow
def test_the_report_stands_alone_and_holds_pictures_tables_and_claims(demo):
    folder, out = demo
    page = (folder / "report.html").read_text()
    assert "report.html" in out
    sources = re.findall(r"""\ssrc\s*=\s*["']([^"']*)""", page)
    assert sources and all(source.startswith("data:") for source in sources)
    links = re.findall(r"""\shref\s*=\s*["']([^"']*)""", page)  # to pictures beside the page, no more
    assert all(link.startswith("#") or (folder / link).is_file() for link in links)
    assert "<script src" not in page and "@import" not in page and "url(http" not in page
    assert page.count("data:image/png;base64,") >= 10
    for claim in (
        "AMG clears all copies under captions",
        "Without G_sim some copies remain",
    ):
        assert claim in page
