"""`logger=wandb` writes offline runs without account or network; what they hold is read back from their files."""

import json
import os
import struct
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from amg.metrics import Share
from experiments.cli.main import compose_config, main
from experiments.config.bind import check
from experiments.report.loggers import _numbers
from experiments.run import records

QUICK = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu", "logger=wandb"]
SWEEP = yaml.safe_load((Path(__file__).parents[3] / "docs" / "wandb_sweep.yaml").read_text())
BLOCK = 32768


@pytest.fixture(autouse=True)
def _below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")


class Offline:
    """A finished offline run: its header, configuration, history and tables."""

    def __init__(self, folder: Path):
        (log,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        self.config, self.history, self.files = {}, {}, log.parent / "files"
        for record in _records(log):
            if record.HasField("run"):
                self.group, self.job_type, self.project = record.run.run_group, record.run.job_type, record.run.project
                self.tags = list(record.run.tags)
            for item in [*record.run.config.update, *record.config.update]:
                self._keep(self.config, item)
            for item in record.history.item:
                self._keep(self.history, item)

    @staticmethod
    def _keep(place: dict, item) -> None:
        *path, last = item.nested_key or [item.key]
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)

    def table(self, name: str) -> list[dict]:
        content = json.loads((self.files / self.history[name]["path"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def _records(log: Path):
    """W&B's log: a 7-byte head, then LevelDB's log format, whose records are protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # W&B's own process writes it
        whole, found, part, place = log.read_bytes(), [], b"", 7
        while place + 7 <= len(whole):
            if BLOCK - place % BLOCK < 7:  # no room for a head: the rest of a block is empty
                place += BLOCK - place % BLOCK
                continue
            _, length, kind = struct.unpack("<IHB", whole[place : place + 7])
            part += whole[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(part))
                part = b""
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{log} was not finished")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "offline"])
def test_a_finished_offline_run_holds_configuration_metrics_table_figures_and_samples(mode, monkeypatch):
    if mode is None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert main([*QUICK, "output_dir=out", "name=mine"]) == 0
    assert os.environ.get("WANDB_MODE") == mode
    run = Offline(Path("out"))
    assert (run.project, run.group, run.job_type) == ("memorization-free-diffusion", "mine", "none")
    assert run.config["seed"] == 0 and run.config["model"]["name"] == "closed_form"
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert run.history["truth_copies/count"] == manifest["metrics"]["truth_copies"]["count"]
    assert run.history["top5"] == pytest.approx(manifest["metrics"]["top5"])
    rows = records.read("out")
    assert [row["seed"] for row in run.table("samples")] == rows["seed"].tolist() == [0, 1]
    assert [row["similarity"] for row in run.table("samples")] == pytest.approx(rows["similarity"].tolist())
    assert [row["prompt"] for row in run.table("samples")] == rows["prompt"].tolist()
    assert run.table("table")[0]["label"] == "none"
    figures = {key for key, value in run.history.items() if isinstance(value, dict) and value["_type"] == "image-file"}
    assert figures == {file.stem for file in Path("out/figures").glob("*.png")} and len(figures) > 1
    assert run.config["digests"] == {
        "bank": manifest["bank"]["digest"], "threshold": manifest["threshold"], "weights": manifest["weights"]
    }  # fmt: skip
    assert sorted(run.tags) == ["closed_form", "none", "pca"]
    nearest = run.history["nearest"]
    assert nearest["_type"] == "images/separated" and nearest["count"] == 2
    assert sorted(nearest["captions"]) == sorted(
        f"seed {row.seed}, similarity {row.similarity:.2f}" for row in rows.itertuples()
    )
    with Image.open(run.files / nearest["filenames"][0]) as pair:  # by similarity: the sample, then its neighbour
        best = rows.sort_values(["similarity", "seed"], ascending=[False, True]).iloc[0]
        left = pair.convert("RGB").crop((0, 0, pair.height, pair.height)).resize((32, 32), Image.Resampling.NEAREST)
    with Image.open(records.picture_path("out", best["seed"])) as own:
        assert left.tobytes() == own.convert("RGB").tobytes()
    assert all((run.files / run.history[key]["path"]).is_file() for key in figures)
    import wandb

    assert wandb.run is None, "the next job of a sweep would write into this run"


@pytest.mark.parametrize("name, value", [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
@pytest.mark.parametrize("offline", ["true", "false"])
def test_nothing_is_written_where_the_environment_says_so(monkeypatch, name, value, offline):
    monkeypatch.setenv(name, value)
    assert main([*QUICK, "output_dir=out", f"logger.offline={offline}"]) == 0
    assert Path("out/report.html").is_file() and not Path("out/wandb").exists()


def test_without_a_key_an_online_run_is_refused_before_anything_is_drawn(monkeypatch, capsys):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "none")
    assert main([*QUICK, "output_dir=out", "logger.offline=false"]) == 2
    assert "error: logger.offline=false: W&B has no key here" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_the_jobs_of_a_sweep_share_a_group_and_its_table_and_figures_are_a_run_of_their_own():
    assert main(["-m", "guidance=none,full", "name=both", *QUICK]) == 0
    jobs = [Offline(folder) for folder in sorted(Path("runs/both").glob("closed_form-*"))]
    assert {job.group for job in jobs} == {"both"} and [job.job_type for job in jobs] == ["full", "none"]
    assert [len(job.table("samples")) for job in jobs] == [2, 2]
    sweep = Offline(Path("runs/both"))
    assert (sweep.group, sweep.job_type, "samples" in sweep.history) == ("both", "sweep", False)
    assert [row["label"] for row in sweep.table("table")] == ["none", "full"]
    assert len(sweep.config["jobs"]) == 2 and any(key.startswith("similarity-") for key in sweep.history)


def test_the_example_sweep_of_wandb_composes_with_the_arguments_that_its_agent_gives():
    grid = {key: values["values"] for key, values in SWEEP["parameters"].items()}
    for pick in (0, -1):
        sampled = [f"{key}={values[pick]}" for key, values in grid.items()]
        line = [word for item in SWEEP["command"] for word in (sampled if item == "${args_no_hyphens}" else [item])]
        assert line[:3] == ["${env}", "${interpreter}", "${program}"] and SWEEP["program"] == "run.py"
        from experiments.cli.main import reach

        run = check(compose_config([reach(argument) for argument in line[3:]]))
        assert run.logger["_target_"] == "experiments.report.loggers.wandb" and run.logger["offline"] is False
        assert run.guidance["c3"] == grid["guidance.c3"][pick] and run.seed == grid["seed"][pick]


def test_the_metric_of_the_example_sweep_is_one_that_runs_log():
    logged = _numbers({"truth_copies": Share(1, 4)})
    name, part = SWEEP["metric"]["name"].split("/")
    assert logged[name][part] == 0.25
    starts = SWEEP["parameters"]["seed"]["values"]
    (n,) = (int(word.split("=")[1]) for word in SWEEP["command"] if word.startswith("n_samples="))
    assert all(b - a >= n for a, b in zip(starts, starts[1:], strict=False))
