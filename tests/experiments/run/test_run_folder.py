"""The folder of a run: one process at a time, one configuration, and measuring again leaves what was drawn."""

import json
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.schema import ConfigError
from experiments.run import records
from experiments.run.folder import Manifest, in_folder

SMALL = ["n_samples=6", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu", "output_dir=out"]


def manifest():
    return json.loads(Path("out/manifest.json").read_text())


def all_files():
    return {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.fixture
def drawn(command):
    assert command(*SMALL, "guidance=sim")[0] == 0
    return command


def test_measuring_again_leaves_how_the_pictures_were_drawn(drawn):
    configuration, before = Path("out/config.yaml").read_bytes(), manifest()
    again = [*SMALL, "guidance=sim", "task=evaluate", "n_samples=4", "judge.copy=-100"]
    code, out, told = drawn(*again)
    assert code == 0, told
    assert Path("out/config.yaml").read_bytes() == configuration
    after = manifest()
    assert after["command"] == before["command"] and "task=evaluate" in after["evaluated_by"]
    # no nL2 distance reaches 100, so all of the four samples that were asked for count
    assert after["metrics"]["judge_copies"] == {"count": 4, "n": 4} and before["metrics"]["n"] == 6
    page = Path("out/report.html").read_text()
    assert "Measured by" in page and "task=evaluate n_samples=4" in page

    code, _, told = drawn("task=collect", "task.runs=[out]")  # what measured last counts, not what was drawn
    assert code == 0, told
    assert "| 4 |" in Path("runs/collected/table.md").read_text()
    assert drawn(*SMALL, "guidance=sim")[0] == 0
    assert manifest()["evaluated_by"] is None and manifest()["metrics"]["n"] == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [(["guidance=none"], "guidance"), (["guidance=sim", "similarity@judge=pca"], "judge"),
     (["guidance=sim", "seed=3"], "seed")],
)  # fmt: skip
def test_pictures_are_not_measured_as_those_of_another_configuration(drawn, changes, named):
    before = all_files()
    code, _, told = drawn(*SMALL, "task=evaluate", *changes)
    assert code == 2 and told == (
        f"error: output_dir=out: holds samples of another {named}; measure them with their own\n"
    )
    assert all_files() == before


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_is_cut_off_is_named_and_without_it_the_run_continues(drawn, name, share):
    file, before = Path("out", name), records.read("out")
    file.write_text(file.read_text()[: int(share * file.stat().st_size)])
    code, _, told = drawn(*SMALL, "guidance=sim")
    assert (code, told) == (
        2, f"error: {file}: empty or cut off: delete it; the command that made it makes it anew\n"
    )  # fmt: skip
    file.unlink()
    assert drawn(*SMALL, "guidance=sim")[0] == 0
    assert manifest()["status"] == "done" and before.equals(records.read("out"))


def test_a_folder_without_samples_has_nothing_to_measure(command):
    code, _, told = command(*SMALL, "task=evaluate")
    assert code == 2 and told.startswith("error: output_dir=out: holds no samples to measure") and told.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("task", ["generate", "detect"])
def test_a_folder_in_use_is_refused_and_left_alone(command, task):
    Path("out").mkdir()
    with FileLock("out/.lock"):
        code, _, told = command(*SMALL, f"task={task}", "sampler.steps=3")
    assert code == 2 and told == (
        "error: out is in use by another process: wait for it, or choose another output_dir\n"
    )
    assert all_files() == {}


def test_an_error_within_is_told_by_the_manifest_and_frees_the_folder(tmp_path):
    run = check(compose_config(["n_samples=3"]), bind=False)
    with pytest.raises(ZeroDivisionError), in_folder(run, tmp_path, {"seed": 0}):
        assert Manifest(tmp_path).read() == {"status": "running", "message": None, "seed": 0}
        raise ZeroDivisionError("by hand")
    assert Manifest(tmp_path).read()["message"] == "ZeroDivisionError: by hand"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["n_samples"] == 3
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "0.parquet").touch()
    other = check(compose_config(["seed=1"]), bind=False)
    with in_folder(other, tmp_path, {}):  # no samples of this kind yet
        pass
    with pytest.raises(ConfigError, match="another seed"), in_folder(run, tmp_path, {}, kind="seen"):
        pass
