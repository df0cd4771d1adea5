"""on_copy in runs: no copy by guide or judge is left, and what that cost stands in records and table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from composed import composed, mistakes
from PIL import Image

from amg.guidance import AntiMemorizationGuidance
from experiments.config.bind import check
from experiments.config.build import component
from experiments.run import records
from experiments.run.evaluate import copies

QUICK = ["metrics.extractor=none", "trainer=cpu", "sampler.steps=8", "prompts=planted", "n_samples=12", "seed=40"]


def drawn(command, *arguments):
    code, out, err = command(*QUICK, *arguments)
    assert code == 0, err
    folder = next(Path(word.split("=")[1]) for word in arguments if word.startswith("output_dir="))
    return records.read(folder), json.loads((folder / "manifest.json").read_text())["metrics"], folder, out


def image(folder, seed):
    return np.asarray(Image.open(records.picture_path(folder, seed)))


def test_copies_are_drawn_again_or_refused_and_none_is_left(command):
    plain, _, folder, _ = drawn(command, "output_dir=plain")
    kept, metrics, again, out = drawn(command, "output_dir=again", "on_copy=resample", "tries=2", "batch_size=5")
    assert plain.tries.isna().all() and plain.refused.isna().all()
    manifest = json.loads((again / "manifest.json").read_text())["metrics"]
    assert manifest["copies"] == manifest["judge_copies"] == {"count": 0, "n": 12}
    redrawn = kept.tries > 0
    assert 0 < redrawn.sum() < 12 and set(kept.tries) <= {0, 1, 2} and (kept.tries[kept.refused] == 2).all()
    assert metrics["tries"]["mean"] == pytest.approx(kept.tries.mean())
    assert metrics["refused"] == {"count": int(kept.refused.sum()), "n": 12} and kept.refused.any()
    assert "Redraws" in out and "Refused" in out
    for row in kept.itertuples():
        same = np.array_equal(image(again, row.seed), image(folder, row.seed))
        assert same != (row.tries > 0) and image(again, row.seed).any() != row.refused
    # the same seeds alone give the same images: a redraw depends on its seed and its number only
    one, *_ = drawn(command, "output_dir=one", "on_copy=resample", "tries=2", "batch_size=1")
    assert (one.tries == kept.tries).all() and (one.refused == kept.refused).all()
    assert np.allclose(one.similarity, kept.similarity, atol=1e-3)


def test_copies_are_refused_at_once_or_told_only(command):
    plain, before, folder, _ = drawn(command, "output_dir=plain")
    flagged, told, *_ = drawn(command, "output_dir=flag", "on_copy=flag")
    assert told["copies"] == before["copies"] and (flagged.tries == 0).all() and not flagged.refused.any()
    black, metrics, refused, _ = drawn(command, "output_dir=refuse", "on_copy=refuse")
    assert metrics["copies"]["count"] == 0 < metrics["refused"]["count"]
    assert all(image(refused, row.seed).any() != row.refused for row in black.itertuples())


def test_another_first_noise_comes_first_then_the_strong_constants():
    run = check(composed("guidance=full", "on_copy=resample"))
    assert run.tries == 3 and run.guidance["strong"]["c3"] == 20 != run.guidance["c3"]
    flags = check(composed("guidance=full"))
    assert flags.tries is None and "strong" not in flags.guidance
    nothing = {"similarity": lambda images: None, "threshold": lambda t: 0.0}
    guidance = component(run.guidance, **nothing)
    assert isinstance(guidance, AntiMemorizationGuidance) and guidance.stronger().c3 == 20
    assert guidance.stronger().watch.threshold(0.5) != 0.0  # its own λ_t


def test_mistakes_are_told():
    assert mistakes("tries=2") == ["tries: counts the redraws of on_copy=resample; leave it out, or choose that"]
    assert "on_copy='drop': input should be 'flag', 'resample' or 'refuse'" in mistakes("on_copy=drop")


def test_a_truth_that_is_unknown_stays_so_where_images_were_refused():
    rows = pd.DataFrame({"similarity": [0.5, 0.99], "judge": [0.5, 0.9], "refused": [False, True]})
    rows = rows.assign(truth=pd.array([None, None], "boolean"), planted=pd.array([False, False], "boolean"))
    assert copies(rows, 0.9, 0.8)["truth_copies"].isna().all()
    known = copies(rows.assign(truth=pd.array([True, True], "boolean")), 0.9, 0.8)["truth_copies"]
    assert known.tolist() == [True, False]
