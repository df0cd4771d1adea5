"""Sweeps in processes of their own: killed and continued, started by launchers, with yamls of the user's own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_dir

from experiments.cli.main import CONF, folders, own_folder
from experiments.run import records

RUN = Path(__file__).parents[3] / "run.py"
SMALL = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu"]
MINE = "name: mine\n_target_: amg.guidance.AntiMemorizationGuidance\nterms: [sim]\nc3: 5.0\n"


def started(tmp_path: Path, *arguments: str, threads: str | None = "1", **options) -> subprocess.Popen:
    """The same from a shell, in a process group of its own; `threads` is OMP_NUM_THREADS, None leaves it unset."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    return subprocess.Popen([sys.executable, str(RUN), *arguments], cwd=tmp_path, env=environment,
                            start_new_session=True, text=True, **options)  # fmt: skip


def statuses(tmp_path: Path, name: str) -> dict[str, str]:
    files = (tmp_path / "runs" / name).glob("closed_form-*/manifest.json")
    return {one["guidance"]: one["status"] for one in (json.loads(file.read_text()) for file in files)}


@pytest.mark.slow
def test_a_sweep_that_was_killed_continues_with_the_same_command_and_draws_nothing_again(command, tmp_path):
    line = ["-m", "guidance=none,sim,full", "name=k", *SMALL, "n_samples=12", "batch_size=2", "sampler.steps=40"]
    sweep = started(tmp_path, *line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = tmp_path / "runs" / "k"
    deadline = time.monotonic() + 120
    while not any(records.seeds_done(run) for run in runs.glob("closed_form-sim-*")):  # a shard that is whole
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    assert statuses(tmp_path, "k") == {"none": "done", "sim": "running"}
    before = {}
    for run in runs.glob("closed_form-*"):
        pictures = [records.picture_path(run, seed) for seed in records.seeds_done(run)]
        before |= {file: file.stat().st_mtime_ns for file in [*pictures, *run.glob("records/*.parquet")]}
    (cut,) = runs.glob("closed_form-sim-*")
    assert 0 < len(records.seeds_done(cut)) < 12
    code, _, told = command(*line)
    assert code == 0, told
    assert statuses(tmp_path, "k") == dict.fromkeys(("none", "sim", "full"), "done")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for run in runs.glob("closed_form-*"):
        seeds = [seed for file in run.glob("records/*.parquet") for seed in pq.read_table(file)["seed"].to_pylist()]
        assert sorted(seeds) == [*range(12)]  # each drawn once


@pytest.mark.parametrize(
    ("swept", "named", "said"),
    [
        (["guidance=full,gni", "guidance.c1=1"], "guidance=gni", "guidance.c1"),
        (["model=closed_form,ddpm_cifar10"], "model=ddpm_cifar10", "model"),
    ],
)
def test_a_job_that_cannot_run_is_named_at_the_end_and_the_others_finish(command, tmp_path, swept, named, said):
    code, out, told = command("-m", *swept, "name=t", *SMALL)
    assert code in (1, 2)
    last = told.splitlines()[-1]
    assert last.startswith("error: ") and named in last and said in last.split(": ", 2)[2] and "Traceback" not in told
    assert [*statuses(tmp_path, "t").values()] == ["done"] and "table and report" in out


@pytest.mark.slow
def test_jobs_side_by_side_share_the_cores_and_leave_their_results_where_the_sweep_finds_them(tmp_path):
    line = ["-m", "hydra/launcher=parallel", "guidance=full,gni", "guidance.c1=1", "name=p", *SMALL]
    sweep = started(tmp_path, *line, threads=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, told = sweep.communicate()
    assert sweep.returncode == 2, told
    assert told.splitlines()[-1].startswith("error: ") and "guidance=gni" in told.splitlines()[-1]
    assert statuses(tmp_path, "p") == {"full": "done"} and "runs/p/report.html" in out
    (file,) = (tmp_path / "runs" / "p").glob("closed_form-*/manifest.json")
    threads = max(1, joblib.cpu_count() // 2)
    assert json.loads(file.read_text())["machine"].endswith(f", CPU threads {threads}")


def test_a_job_takes_as_many_threads_as_one_says_whatever_joblib_tells_mkl():
    code = "from experiments.cli.sweep import own_threads; own_threads(); import torch; print(torch.get_num_threads())"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=RUN.parent, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.slow
def test_submitit_starts_jobs_whose_results_the_sweep_finds(tmp_path):
    line = ["-m", "hydra/launcher=slurm_local", "guidance=none", "name=s", *SMALL]
    sweep = started(tmp_path, *line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, told = sweep.communicate()
    assert sweep.returncode == 0, told
    assert statuses(tmp_path, "s") == {"none": "done"} and "runs/s/report.html" in out
    assert list((tmp_path / "runs" / ".hydra").glob("**/.submitit/*/*_result.pkl"))  # it was submitit


def test_the_preset_for_slurm_makes_a_job_file_that_asks_for_one_card_per_job(tmp_path, monkeypatch):
    import submitit

    srun = tmp_path / "srun"  # submitit only looks whether there is one
    srun.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.sweep.dir=sweep"]
        launcher = compose("config", overrides=chosen, return_hydra_config=True).hydra.launcher
    settings = {key: value for key, value in launcher.items() if key not in ("_target_", "submitit_folder")}
    shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name",
              "stderr_to_stdout")  # fmt: skip
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    executor.update_parameters(
        **{
            key if key in shared else f"slurm_{key}": value
            for key, value in settings.items()
            if key != "max_num_timeout"
        }
    )
    text = executor._executor._make_submission_file_text("python job.py", "1")
    for asked in ("--partition=gpu", "--gpus-per-node=1", "--ntasks-per-node=1", "--nodes=1", "--job-name=amg"):
        assert f"#SBATCH {asked}" in text, text


def test_a_job_of_a_sweep_takes_one_device(command, tmp_path):
    code, _, told = command("-m", "guidance=none,full", *SMALL, "trainer.devices=2")
    assert code == 2 and told.count("error: ") == 1 and "one device" in told
    assert list(tmp_path.iterdir()) == []
    assert command("-m", "guidance=none", "name=auto", *SMALL, "trainer.devices=auto")[0] == 0
    (file,) = (tmp_path / "runs" / "auto").glob("closed_form-*/config.yaml")
    assert yaml.safe_load(file.read_text())["trainer"]["devices"] == 1


@pytest.fixture
def own(tmp_path):
    """A folder of the user's own yamls, in a place whose name is awkward."""
    folder = tmp_path / "it's, my=own"
    for group in ("guidance", "experiment"):
        (folder / group).mkdir(parents=True)
    (folder / "guidance" / "mine.yaml").write_text(MINE)
    (folder / "experiment" / "ours.yaml").write_text(
        "# @package _global_\nname: ours\nhydra:\n  sweeper:\n    params:\n      guidance: none,mine\n"
    )
    return folder


def test_yamls_of_ones_own_serve_a_single_run(command, own, tmp_path):
    code, out, told = command("-cd", str(own), "guidance=mine", "name=single", *SMALL)
    assert code == 0, told
    assert statuses(tmp_path, "single") == {"mine": "done"} and "report.html" in out
    (run,) = (tmp_path / "runs" / "single").iterdir()
    assert "Top5" in (run / "table.md").read_text()
    said = shlex.split(json.loads((run / "manifest.json").read_text())["command"])
    assert said[:5] == ["python", "run.py", "-cd", str(own), "guidance=mine"]  # fit to be pasted into a shell


def test_yamls_of_ones_own_serve_a_sweep_also_one_of_their_own(command, own, tmp_path):
    assert command(f"--config-dir={own}", "-m", "guidance=none,mine", "name=swept", *SMALL)[0] == 0
    assert statuses(tmp_path, "swept") == {"none": "done", "mine": "done"}
    assert "| mine |" in (tmp_path / "runs" / "swept" / "table.md").read_text()
    code, _, told = command("-cd", str(own), "experiment=ours", *SMALL)
    assert code == 0, told
    assert statuses(tmp_path, "ours") == {"none": "done", "mine": "done"}


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_mistakes_beside_ones_own_yamls_are_told_in_a_line(command, own, multirun):
    code, _, told = command(*multirun, "-cd", str(own), "guidance=min", *SMALL)
    assert (code, told) == (2, "error: guidance=min: no such choice; did you mean mine?\n")
    (own / "guidance" / "latin.yaml").write_bytes("# für mich".encode("latin-1"))
    code, _, told = command(*multirun, "-cd", str(own), *SMALL)
    assert code == 2 and "latin.yaml: no YAML in UTF-8" in told and told.count("\n") == 1
    code, _, told = command(*multirun, "-cd", "nowhere", *SMALL)
    assert code == 2 and told.startswith("error: -cd nowhere: no such folder") and told.count("\n") == 1


def test_flags_that_would_run_something_else_are_refused_and_help_shows_ones_own_choices(command, own):
    for flag in ("-cn", "--config-name=other", "--config-path"):
        code, _, told = command(flag, "x")
        assert code == 2 and told.startswith(f"error: {flag}: ")
    assert "mine" in command("--help", "-cd", str(own))[1]
    assert folders(own_folder(["-cd", str(own)])) == [CONF, own]
