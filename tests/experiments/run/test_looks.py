"""Rests between looks and decoders as keys of a run."""

import json
import shutil

import numpy as np
import pytest
from composed import mistakes
from PIL import Image

from amg.guidance import presets
from experiments.cli.main import main
from experiments.run import records
from experiments.tasks import calibrate

QUICK = ["metrics.extractor=none", "trainer=cpu", "sampler.steps=12", "guidance=full", "prompts=planted", "n_samples=8"]


@pytest.fixture
def curves(tmp_path, monkeypatch):
    """A table for the closed form with pca: whatever its gap, an unflagged sample rests for a third of the schedule."""
    folder = shutil.copytree(presets.CURVES, tmp_path / "curves")
    learned = json.loads((folder / "closed_form-pca.json").read_text())
    rests = {"spans": [0.3], "gaps": [[0.0]] * len(learned["times"]), "last": 0.0, "rate": 0.005}
    (folder / "closed_form-pca.json").write_text(json.dumps(learned | {"looks": rests, "sampler": "DDIMScheduler"}))
    for module in (presets, calibrate):
        monkeypatch.setattr(module, "CURVES", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_rested_step_is_null_and_who_is_never_flagged_keeps_its_image(curves):
    for looks in ("every", "adaptive"):
        assert main([*QUICK, f"looks={looks}", f"output_dir={looks}"]) == 0
    every, adaptive = records.read("every"), records.read("adaptive")
    seen = ~np.isnan(np.stack(adaptive.trace_similarity))
    flagged = np.stack(adaptive.trace_flagged)
    never = ~flagged.any(1) & ~np.stack(every.trace_flagged).any(1)
    assert not np.isnan(np.stack(every.trace_similarity)).any() and not (flagged & ~seen).any()
    assert never.any() and flagged.any()
    assert (seen[never].sum(1) == 3).all()  # a step is a twelfth: the first, and two that are 4 steps apart
    after = np.cumsum(flagged, 1)[:, :-1] > 0
    assert seen[:, 1:][after].all()  # once flagged, in every step
    for seed in adaptive.seed[never]:
        a, b = (np.asarray(Image.open(f"{run}/pictures/{seed}.png")) for run in ("every", "adaptive"))
        assert np.array_equal(a, b)


def test_looks_that_were_not_learned_and_decoders_without_latents_are_told(curves, capsys):
    told = "looks=adaptive: nothing was learned for model=closed_form with similarity=nl2"
    assert told in mistakes("looks=adaptive", "similarity=nl2")[0]
    assert "learned with DDIMScheduler, not DDPMScheduler" in mistakes("looks=adaptive", "sampler=ddpm")[0]
    assert main(["n_samples=1", "decoder=tiny", "trainer=cpu"]) == 2
    assert "decoder=tiny: model=closed_form has no latents" in capsys.readouterr().err


@pytest.mark.slow
def test_what_calibrate_learns_of_copies_lets_a_run_rest(curves):
    keys = ["prompts=ordinary", "sampler.steps=12", "trainer=cpu", "n_samples=64"]
    assert main(["task=calibrate", *keys, "task.copied=planted", "task.n_copied=400"]) == 0
    learned = presets.named_looks("closed_form-pca")
    assert len(learned.gaps) == 12 and learned.rate == 0.005
    rest = ["n_samples=8", "threshold=calibrated", "looks=adaptive", "output_dir=out"]
    assert main([*QUICK[:-2], keys[0], *rest]) == 0
    assert np.isnan(np.stack(records.read("out").trace_similarity)).mean() > 0.2
