"""Runs that differ in their seeds alone become one row: counts added up, means with their interval over seed groups."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from synthetic_runs import write_run

from amg.metrics import Mean, Share
from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.schema import ConfigError
from experiments.run.folder import is_twin
from experiments.tables.names import keys, labels
from experiments.tables.rows import pool


def metrics(copies=1, **changes):
    counts = {"n": 8, "copies": Share(copies, 8)}
    return {**counts, "top5": 0.5, "fid": 9.0, "thresholds": "copies: similarity > 0.9"} | changes


def finished(folder: Path, guidance: str, seed: int, changes=(), setting=None, **measured):
    """A run folder whose numbers a test sets by hand."""
    run = check(compose_config([f"guidance={guidance}", f"seed={seed}", "n_samples=8", *changes]), bind=False)
    write_run(folder, guidance, set(), seed=seed, setting=setting or guidance, metrics=metrics(**measured))
    (folder / "config.yaml").write_text(yaml.safe_dump(run.model_dump()))
    return folder


def rows(folder: str = "runs/collected"):
    return {row["label"]: row for row in csv.DictReader(Path(folder, "table.csv").open())}


def test_a_mean_has_students_interval_over_the_groups():
    pooled = pool([metrics(fid=fid) for fid in (1.0, 2.0, 3.0)])
    assert pooled["fid"] == Mean.over([1.0, 2.0, 3.0]) and pooled["groups"] == 3
    of_means = pool([metrics(alignment=Mean(mean, 8, 0.5)) for mean in (1.0, 3.0)])["alignment"]
    assert of_means == Mean.over([1.0, 3.0])


def test_a_share_is_counted_over_all_samples_with_wilsons_interval():
    pooled = pool([metrics(copies=1), metrics(copies=0), metrics(copies=3)])
    assert (pooled["copies"], pooled["n"]) == (Share(4, 24), 24)


def test_a_share_of_some_samples_keeps_its_own_n_and_groups_without_any_do_not_count():
    pooled = pool([{"n": 8, "aligned": share} for share in (Share(2, 4), None, Share(3, 5))])
    assert (pooled["aligned"], pooled["n"]) == (Share(5, 9), 24)
    assert pool([{"n": 8, "aligned": None}] * 2)["aligned"] is None


def test_causes_add_up_and_unknown_numbers_stay_unknown():
    groups = [
        {"n": 2, "by_cause": {"a": {"n": 2, "copies": Share(1, 2)}}, "fid": None},
        {"n": 2, "by_cause": {"a": {"n": 1, "copies": Share(1, 1)}, "b": {"n": 1, "copies": Share(0, 1)}}, "fid": None},
    ]
    pooled = pool(groups)
    assert pooled["by_cause"] == {"a": {"n": 3, "copies": Share(2, 3)}, "b": {"n": 1, "copies": Share(0, 1)}}
    assert pooled["fid"] is None


def test_one_group_has_no_interval():
    assert pool([metrics()])["fid"] == 9.0


def test_labels_say_what_differs_and_no_more():
    full = {"name": "full", "c3": 1}
    configs = [
        {"guidance": {"name": "none"}, "s0": 3, "model": {"name": "m"}},
        {"guidance": full, "s0": 3, "model": {"name": "m"}},
        {"guidance": full | {"c3": 2}, "s0": 3, "model": {"name": "m"}},
    ]
    assert labels(configs) == ["none", "guidance=full guidance.c3=1", "guidance=full guidance.c3=2"]


def test_jobs_of_a_sweep_are_named_by_what_was_swept_and_a_table_by_its_rows():
    jobs = [[f"++guidance.c3={c}", "n_samples=8", f"seed={seed}"] for c in (1, 2) for seed in (0, 8)]
    swept = [{"overrides": job, "guidance": None} for job in jobs]
    assert keys(swept) == ["guidance.c3=1"] * 2 + ["guidance.c3=2"] * 2
    assert keys(swept[:2]) == ["all"] * 2
    tabled = [
        {"overrides": [f"guidance={row}", f"seed={seed}"], "guidance": row}
        for row in ("none", "full")
        for seed in (0, 8)
    ]
    assert keys(tabled) == ["none", "none", "full", "full"]


def test_a_guided_run_is_compared_with_the_unguided_run_of_the_same_seeds_and_similarity():
    def run(*arguments):
        return check(compose_config(list(arguments)), bind=False)

    guided = run("guidance=full", "seed=8")
    assert is_twin(guided, run("guidance=none", "seed=8"))
    assert not is_twin(guided, run("guidance=none", "seed=0"))
    assert not is_twin(guided, run("guidance=none", "seed=8", "similarity=nl2"))
    assert not is_twin(guided, run("guidance=sim", "seed=8"))
    assert not is_twin(run("guidance=none", "seed=8"), run("guidance=none", "seed=8", "threshold=always"))
    assert not is_twin(run("guidance=full", "prompt=snowman"), run("guidance=none", "prompt=bus"))


def test_runs_of_one_setting_are_one_row(command, tmp_path):
    for seed, fid in ((0, 1.0), (8, 3.0)):
        finished(tmp_path / "runs" / "t" / f"none-{seed}", "none", seed, fid=fid, copies=seed // 8)
        finished(tmp_path / "runs" / "t" / f"full-{seed}", "full", seed, copies=0)
    code, out, told = command("task=collect", "task.runs=[runs/t/*]")
    assert (code, told) == (0, "") and "report.html" in out
    found = rows()
    assert set(found) == {"none", "full"}
    none = found["none"]
    assert (none["groups"], none["n"], none["copies"], none["copies_n"]) == ("2", "16", "1", "16")
    assert float(none["fid"]) == 2 and float(none["fid_ci"]) == pytest.approx(12.7062, rel=1e-5)
    markdown = Path("runs/collected/table.md").read_text()
    assert "2.0 ± 12.7" in markdown and "1/16 (1.1–28.3 %)" in markdown and "Student's t" in markdown
    assert Path("runs/collected/table.tex").is_file() and Path("runs/collected/report.html").is_file()


def test_a_run_whose_metrics_an_earlier_version_measured_is_left_out_by_name(command, tmp_path):
    finished(tmp_path / "runs" / "t" / "new", "none", 0)
    finished(tmp_path / "runs" / "t" / "old", "full", 0, copies=0)
    manifest = tmp_path / "runs" / "t" / "old" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["metrics"] |= {"copies": 0, "copies_share": 0.0}
    manifest.write_text(json.dumps(content))
    code, _, told = command("task=collect", "task.runs=[runs/t/*]")
    assert code == 0 and "runs/t/old: measured by an earlier version" in told and len(rows()) == 1


def test_runs_of_another_size_or_other_metrics_are_rows_of_their_own(command, tmp_path):
    finished(tmp_path / "a", "none", 0)
    finished(tmp_path / "b", "none", 8, ["n_samples=16"], n=16)
    finished(tmp_path / "c", "none", 24, ["metrics.extractor=none"])
    assert command("task=collect", "task.runs=[a,b,c]")[0] == 0
    assert [row["n"] for row in rows().values()] == ["8", "16", "8"]


def test_overlapping_seeds_are_refused_in_one_line_that_names_both_runs(command, tmp_path):
    finished(tmp_path / "a", "none", 0)
    finished(tmp_path / "b", "none", 4)
    finished(tmp_path / "c", "full", 4)
    code, _, told = command("task=collect", "task.runs=[a,b,c]")
    assert code == 2
    assert told.count("\n") == 1 and told.startswith("error: a and b share the seeds 4 to 7, ")
    assert not Path("runs").exists()


def test_runs_that_are_not_finished_are_named_and_left_out(command, tmp_path):
    finished(tmp_path / "runs" / "done", "none", 0)
    for name, changes in {
        "stopped": {"status": "running"},
        "broken": {"status": "failed", "message": "no space"},
    }.items():
        folder = finished(tmp_path / "runs" / name, "none", 8)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    finished(tmp_path / "runs" / "half", "none", 16, n=5)
    (tmp_path / "runs" / "bare" / "records").mkdir(parents=True)
    (tmp_path / "runs" / "figures").mkdir()
    for name, file in (("cut", "manifest.json"), ("zeros", "config.yaml")):
        file = finished(tmp_path / "runs" / name, "none", 32) / file
        file.write_text(file.read_text()[:300] if name == "cut" else "\0" * 300)
    code, out, told = command("task=collect", "task.runs=runs")
    assert code == 0 and rows()["model=closed_form conditioning=prompt guidance=none s0=3.0"]["n"] == "8"
    assert "runs/stopped: not finished" in told and "runs/broken: failed, no space" in told
    assert "runs/half: 5 of 8 samples" in told and "runs/bare: not finished" in told and "figures" not in told
    assert "runs/cut/manifest.json: empty or cut off" in told and "runs/zeros/config.yaml: empty or cut" in told
    assert "runs/broken: failed, no space" in Path("runs/collected/table.md").read_text()


@pytest.mark.parametrize(
    "pattern, said", [("nowhere/*", "task.runs=nowhere/*: no such folder"), (".", "no finished run")]
)
def test_nothing_to_collect_is_told(command, pattern, said):
    code, _, told = command("task=collect", f"task.runs=[{pattern}]")
    assert code == 2 and said in told and "Traceback" not in told


@pytest.mark.slow
def test_a_sweep_over_seeds_ends_in_the_table_that_collecting_its_runs_gives(command, tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(24):
        Image.new("RGB", (32, 32), (10 * i, 255 - 10 * i, 7 * i)).save(tmp_path / "pictures" / f"{i}.png")
    small = ["n_samples=24", "sampler.steps=2", "trainer=cpu", "metrics.reference=pictures", "name=t"]
    code, _, told = command("-m", "guidance=none,full", "seed=range(0,72,24)", *small)
    assert code == 0, told
    swept = rows("runs/t")
    assert set(swept) == {"none", "full"}
    manifests = [json.loads(file.read_text()) for file in Path("runs/t").glob("closed_form-*/manifest.json")]
    guided = [one["metrics"] for one in manifests if one["guidance"] == "full"]
    mean = sum(one["matched_ratio"]["mean"] for one in guided) / 3
    assert len(guided) == 3 and float(swept["full"]["matched_ratio"]) == pytest.approx(mean)
    assert not any("matched_ratio" in one["metrics"] for one in manifests if one["guidance"] == "none")
    code, _, told = command("task=collect", "task.runs=[runs/t/*]")
    assert code == 0, told
    collected = rows()
    for label, row in swept.items():
        assert row == {key: value for key, value in collected[label].items() if key in row}
        assert collected[label]["groups"] == "3" and collected[label]["n"] == "72"
    assert len(list(Path("runs/t/figures").glob("similarity-*.png"))) == 1  # one pair of curves, not one per seed


def test_overlapping_seeds_in_a_sweep_are_refused_before_the_first_job(command, tmp_path):
    code, _, told = command("-m", "seed=range(0,40,10)", "n_samples=16")
    assert code == 2 and list(tmp_path.iterdir()) == []
    assert told.count("\n") == 1 and told.startswith("error: seed=0 and seed=10 share the seeds 10 to 15, ")


def test_collect_refuses_by_setting_alone():
    from experiments.tables.names import refuse_overlap

    refuse_overlap([("a", 1, range(0, 8)), ("b", 1, range(8, 16)), ("c", 2, range(0, 8))])
    with pytest.raises(ConfigError, match="b and d share the seeds 15 to 15"):
        refuse_overlap([("b", 1, range(8, 16)), ("d", 1, range(15, 17))])
