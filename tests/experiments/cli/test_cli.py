"""The command line from the outside: exit codes, help, and sweeps in which a job cannot or does not work."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import escape

RUN = Path(__file__).parents[3] / "run.py"
SMALL = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu"]


def test_help_is_a_page_that_names_every_group_key_and_exit_code(command):
    code, page, _ = command("--help")
    assert code == 0
    for word in ("guidance", "threshold", "n_samples", "prompt=", "-m", "Exit codes", "sim_spe", "resumes"):
        assert word in page
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.slow
def test_a_run_from_any_folder_leaves_everything_below_that_folder_and_exits_with_0(tmp_path):
    before = sorted(path.name for path in RUN.parent.iterdir())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(RUN), *SMALL, "guidance=full", "prompt=owl"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs" / "run").iterdir()
    assert (run_dir / "report.html").is_file() and str(run_dir.relative_to(tmp_path)) in done.stdout.replace("\n", "")
    assert sorted(path.name for path in RUN.parent.iterdir()) == before


def test_bad_input_exits_with_2_in_one_line_without_a_traceback(command):
    code, _, told = command("prompt=olw", *SMALL)
    assert code == 2
    assert told.count("error: ") == 1 and "owl" in told and "Traceback" not in told


def test_text_guidance_without_text_exits_with_2_and_says_what_to_use(command):
    code, _, told = command("conditioning=none", "guidance=spe", *SMALL)
    assert code == 2 and "use guidance=sim" in told


@pytest.mark.slow
def test_a_failure_exits_with_1(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder must go")
    done = subprocess.run([sys.executable, str(RUN), *SMALL], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1


@pytest.mark.slow
def test_a_glob_over_the_guidances_reports_impossible_pairs_as_na_and_goes_on(command, tmp_path):
    code, out, told = command("-m", "guidance=glob(*)", "conditioning=none", "name=glob", *SMALL)
    assert code == 0, told
    for name in ("spe", "dup", "spe_dup", "wen", "stp", "dtp", "og", "han_batch", "chain", "released_iddpm", "ren"):
        assert f"n/a: guidance={name}: " in told
    done = {run_dir.name.split("-")[1] for run_dir in (tmp_path / "runs" / "glob").glob("closed_form-*")}
    kin = {"spell", "safe_denoiser", "sgf", "procreate", "oracle", "strong"} | {
        f"sim_{name}" for name in ("always", "constant", "parabolic", "calibrated")
    }
    assert done == {"none", "sim", "full", "sim_spe", "sim_dup", "broken_memories", "released_sd"} | kin
    table = (tmp_path / "runs" / "glob" / "table.md").read_text()
    assert "| spe_dup |" in table and "n/a" in table
    assert (tmp_path / "runs" / "glob" / "report.html").is_file()


def test_a_failing_job_does_not_stop_the_others_and_is_named_at_the_end(command, tmp_path):
    """The first job's folder is a file, so that it fails while it runs."""
    (tmp_path / "taken").write_text("")
    code, _, told = command("-m", "output_dir=taken,free", *SMALL)
    assert code == 1
    assert "error: output_dir=taken" in told.splitlines()[-1]
    assert "taken: File exists; choose another place" in told and (tmp_path / "free" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "prompt='owl','it\\'s'", "s0=2"],
        ["-m", "prompt=owl", "seed=range(0,4,2)", "guidance=glob(no*)"],
        ["experiment=pair"],
    ],
)
def test_the_report_of_a_sweep_shows_what_was_typed_once_fit_for_a_shell(command, tmp_path, arguments):
    """`experiment=…` is a sweep too, by the grid that the experiment brings."""
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "pair.yaml").write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      guidance: none,full\n")
    line = ["-cd", "own", *arguments, "name=typed", *SMALL]
    assert command(*line)[0] in (0, 2)
    folder = tmp_path / "runs" / "typed"
    facts = {name: value for name, value, _ in json.loads((folder / "report.json").read_text())["facts"]}
    assert shlex.split(facts["Command"]) == ["python", "run.py", *line] and "\n" not in facts["Command"]
    page = (folder / "report.html").read_text()
    assert page.count(escape(facts["Command"])) == 1
    jobs = [json.loads(file.read_text())["command"] for file in folder.glob("closed_form-*/manifest.json")]
    assert jobs and all(f"<code>{escape(job)}</code>" in page for job in jobs)  # each job's own, beside its settings


def test_a_sweep_with_a_job_of_bad_input_goes_on_and_exits_with_2(command, tmp_path):
    code, _, told = command("-m", "prompt='owl','olw'", "name=two", *SMALL)
    assert code == 2
    assert "olw" in told.splitlines()[-1] and told.count("error: ") == 1
    assert len(list((tmp_path / "runs" / "two").glob("closed_form-*"))) == 1


def test_without_an_extractor_no_reference_is_read_and_none_is_named(command, tmp_path):
    code, out, told = command(*SMALL, "metrics.reference=nowhere", "output_dir=out")
    assert code == 0, told
    assert "images)" not in (tmp_path / "out" / "manifest.json").read_text() and "FID" not in out


def test_a_typo_in_a_sweep_is_told_before_any_job(command, tmp_path):
    code, _, told = command("-m", "guidance=none,ful", "threshold=constnt,always", *SMALL)
    assert code == 2
    assert [line.split(":")[1].strip() for line in told.splitlines()] == ["guidance=ful", "threshold=constnt"]
    assert list(tmp_path.iterdir()) == []
