"""What comes from outside in the midst of a run: a signal, a narrow encoding, a full disk, a logger that fails."""

import io
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.run import records

SMALL = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu", "output_dir=out"]


def manifest(folder="out"):
    return json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_sigterm_ends_a_run_and_its_sweep_within_a_batch_and_the_same_command_continues(command, sweep):
    before = signal.getsignal(signal.SIGTERM)

    def terminate():
        while not any(Path().glob("**/records/[!.]*.parquet")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    guidances = ["guidance=none,sim", "name=both"] if sweep else ["guidance=none", "output_dir=runs/both/none"]
    arguments = [*sweep, *guidances, *SMALL[1:4], "batch_size=1"]
    sender = threading.Thread(target=terminate)
    sender.start()
    code, _, told = command(*arguments, "n_samples=400")
    sender.join()
    assert code == 143 and told == "stopped; the same command continues from here\n"
    assert signal.getsignal(signal.SIGTERM) is before
    (folder,) = Path("runs/both").iterdir()  # the second job was not begun
    done = records.seeds_done(folder)
    assert 1 <= len(done) < 400
    if not sweep:
        assert "nothing left to draw" in command(*arguments, f"n_samples={len(done)}")[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_an_arrow_gets_the_table_all_the_same(command, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert command(*SMALL, "prompt=snowman")[0] == 0
    out.flush()
    shown = out.buffer.getvalue().decode(encoding)
    assert "Copies (judge) ?" in shown and "out/report.html" in shown and manifest()["status"] == "done"


@pytest.mark.parametrize("room", [0, 1500, 6000])  # not even a configuration; no shard; no report
def test_a_full_disk_is_told_in_one_line_and_what_is_written_stays(command, room):
    """The limit of a file's size stands in for it: the same error from the same calls, but for its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            command(*SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = ended.value.code
    assert line.startswith("error: out") and "the same command continues" in line and "\n" not in line
    assert not [file for file in Path("out").rglob(".*") if file.name != ".lock"]
    code, _, told = command(*SMALL)
    assert code == 0, told
    assert list(records.read("out").seed) == [0, 1] and manifest()["status"] == "done"


@pytest.mark.parametrize("sweep", [(), ("-m", "name=one")])
def test_a_logger_that_fails_leaves_a_run_done(command, sweep):
    fails = ["logger._target_=shutil.disk_usage", "logger.path=nowhere", "allow=[shutil.]"]
    code, out, told = command(*sweep, *SMALL, *fails)
    assert code == 0 and "logger=disk_usage failed, and out is whole: FileNotFoundError" in told
    assert manifest()["status"] == "done" and "Copies (judge)" in out
