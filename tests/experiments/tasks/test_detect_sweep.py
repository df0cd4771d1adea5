"""Sweeps of task=detect: a folder per job, one table over all, seeds scored together, nothing computed twice."""

import csv
import json
import shlex
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.schema import ConfigError
from experiments.tasks.detect import present_sweep

SMALL = ["task=detect", "model.size=16", "task.learn=4", "trainer=cpu", "sampler.steps=3", "n_samples=24"]
ONE = "Is the prompt planted? One image"


def rows(section, folder="runs/run"):
    """The measured lines of a part of the table, by label."""
    lines = list(csv.DictReader(Path(folder, "table.csv").open()))
    return {line["label"]: line for line in lines if line["section"] == section and line["source"] == "measured"}


def job(folder, seed, scores, detector="magnitude", key="all", overrides=()):
    """A finished job of n samples, planted and ordinary in turn, whose scores a test sets by hand."""
    given = [f"detector={detector}", f"seed={seed}", *overrides]
    n = len(scores)
    run = check(compose_config(["task=detect", f"n_samples={n}", *given]), bind=False)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(run.model_dump()))
    facts = {"status": "done", "name": "run", "model": "closed_form", "command": "", "notes": ["A copy: by hand."]}
    (folder / "manifest.json").write_text(json.dumps(facts))
    frame = {"seed": range(seed, seed + n), "prompt": [f"p{i}" for i in range(seed, seed + n)],
             "cause": ["specific prompt", "ordinary"] * (n // 2), "copy": False, f"score_{detector}": scores,
             f"calls_{detector}": 2, f"seconds_{detector}": 0.5}  # fmt: skip
    pd.DataFrame(frame).to_parquet(folder / "scores.parquet")
    return {"overrides": given, "guidance": None, "name": "run", "detector": [detector], "run_dir": str(folder),
            "status": "done", "key": f"{detector} {seed}"}  # fmt: skip


def test_ranges_of_seeds_are_scored_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        job(tmp_path / "a", 0, [4.0, 1.0, 0.0, 3.0]),
        job(tmp_path / "b", 4, [6.0, 1.0, 9.0, 5.0]),
        job(tmp_path / "c", 0, [1.0, 0.0, 1.0, 0.0], "norms"),
        job(tmp_path / "d", 4, [1.0, 0.0], "norms") | {"status": "failed", "run_dir": None},
        job(tmp_path / "e", 0, [0.0, 0.0], "one_step") | {"status": "failed", "run_dir": None},
        job(tmp_path / "f", 0, [0.0, 0.0], "anisotropy") | {"status": "n/a", "run_dir": None},
    ]
    present_sweep(jobs, command="typed")
    found = rows(ONE)
    # planted 4 0 6 9 against 1 3 1 5: 3 + 0 + 4 + 4 of 16 pairs
    assert float(found["magnitude"]["auc"]) == pytest.approx(11 / 16)
    assert (found["magnitude"]["tpr"], found["magnitude"]["tpr_n"]) == ("2", "4")
    assert float(found["norms"]["auc"]) == 1 and found["norms"]["tpr_n"] == "2"
    table = Path("runs/run/table.md").read_text()
    assert "| one_step | not run |" in table and "| anisotropy | n/a |" in table
    assert "- A copy: by hand." in table and "scores of all their samples together" in table
    assert "typed" in Path("runs/run/report.html").read_text()


def test_settings_are_rows_of_their_own_and_seeds_that_overlap_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        job(tmp_path / "a", 0, [1.0, 0.0], overrides=["s0=2"]),
        job(tmp_path / "b", 0, [0.0, 1.0], overrides=["s0=3"]),
    ]
    present_sweep(jobs)
    found = rows(ONE)
    assert {label: float(row["auc"]) for label, row in found.items()} == {"magnitude, s0=2": 1, "magnitude, s0=3": 0}
    with pytest.raises(ConfigError, match="share the seeds 1 to 1"):
        present_sweep([jobs[0], job(tmp_path / "c", 1, [1.0, 0.0], overrides=["s0=2"])])


def test_a_range_of_one_kind_counts_beside_the_others_and_alone_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ordinary = job(tmp_path / "a", 0, [1.0, 3.0])
    frame = pd.read_parquet(tmp_path / "a" / "scores.parquet").assign(cause="ordinary")
    frame.to_parquet(tmp_path / "a" / "scores.parquet")
    with pytest.raises(ConfigError, match="every prompt and every sample is of one kind"):
        present_sweep([ordinary])
    present_sweep([ordinary, job(tmp_path / "b", 2, [2.0, 0.0])])
    assert float(rows(ONE)["magnitude"]["auc"]) == pytest.approx(2 / 3)  # 2 against 1, 3 and 0


@pytest.mark.slow
def test_a_sweep_over_detectors_and_seeds_ends_in_one_table_and_resumes(command, tmp_path):
    line = [*SMALL, "-m", "detector=nearest,norms", "seed=range(0,48,24)", "name=my_sweep"]
    code, out, told = command(*line)
    assert code == 0, told
    place = tmp_path / "runs" / "my_sweep"
    assert len(list(place.glob("closed_form-detect-*"))) == 4
    found = rows(ONE, place)
    assert list(found) == ["nearest", "norms"] and found["nearest"]["tpr_n"] == "24"
    assert (place / "table.tex").is_file() and (place / "table.md").is_file()
    page = unescape((place / "report.html").read_text())
    assert shlex.join(["python", "run.py", *line]) in page and page.count("<details>") == 4
    assert len(list((place / "figures").glob("roc-*.png"))) == 2

    shards = {file: file.stat().st_mtime_ns for file in place.glob("*/seen/*.parquet")}
    code, again, _ = command(*line)
    assert code == 0 and rows(ONE, place) == found
    assert {file: file.stat().st_mtime_ns for file in place.glob("*/seen/*.parquet")} == shards and len(shards) == 4


@pytest.mark.slow
def test_other_axes_are_rows_and_what_a_model_cannot_is_na(command, tmp_path):
    world = ["model.planted_weight=0.3", "model.caption_weight=0.8"]
    axes = ["detector=one_step,magnitude", "conditioning=prompt,none", "threshold=always,constant"]
    code, _, told = command(*SMALL, *world, "-m", *axes)
    assert code == 0, told
    assert told.count("n/a: detector=magnitude: looks at what the prompt changes") == 2
    assert rows(ONE)["one_step, conditioning=prompt threshold=always"]["auc"]
    table = Path("runs/run/table.md").read_text()
    assert "| magnitude, conditioning=none threshold=always | n/a |" in table
    # 24 samples without a prompt held no copy here
    assert "| one_step, conditioning=none threshold=constant | n/a |" in table
    assert "conditioning=none threshold=constant: All 24 samples are of one kind" in table


def test_a_job_that_fails_is_named_at_the_end_and_the_others_are_in_the_table(command, tmp_path):
    (tmp_path / "taken").write_text("")
    code, out, told = command(*SMALL, "-m", "detector=one_step", "output_dir=taken,free")
    assert code == 1
    assert told.splitlines()[-1].startswith("error: ") and "output_dir=taken" in told.splitlines()[-1]
    table = Path("runs/run/table.md").read_text()
    assert "| one_step, output_dir=taken | not run |" in table and "one_step, output_dir=free" in table


def test_a_sweep_does_one_task(command, tmp_path):
    code, _, told = command("-m", "task=generate,detect", "n_samples=2")
    assert (code, told) == (2, "error: task: a sweep does one task; give each a command of its own\n")
    assert list(tmp_path.iterdir()) == []
