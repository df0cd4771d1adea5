"""`logger=wandb` writes an offline run without account or network, and leaves the process as it was."""

import os
import time
from pathlib import Path

import pytest

from experiments.cli import main

QUICK = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu", "logger=wandb", "output_dir=out"]


@pytest.fixture(autouse=True)
def _below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "offline"])
def test_an_offline_run_is_written_and_wandb_mode_is_as_before(mode, monkeypatch):
    if mode is None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert main(QUICK) == 0
    assert os.environ.get("WANDB_MODE") == mode
    (folder,) = Path("out/wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 20
    while log.stat().st_size < 1000 and time.monotonic() < deadline:  # W&B's own process writes it
        time.sleep(0.1)
    content = log.read_bytes()
    assert len(content) > 1000
    for word in (b"memorization-free-diffusion", b"closed_form", b"truth_copies", b"similarity"):
        assert word in content, word
    media = {file.name.split("_")[0] for file in folder.rglob("files/media/*/*")}
    assert {"samples", "table"} <= media and any("similarity" in name for name in media), media
    import wandb

    assert wandb.run is None, "the next job of a sweep would write into this run"
