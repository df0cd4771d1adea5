"""The lab's pixel network as a model: its labels, its training set, and a run with it."""

import json
from pathlib import Path

import pytest
import torch

from amg.sampling import sample
from amg.worlds.drawings import DUPLICATED_IMAGE
from amg.worlds.lab import LabDDPM
from experiments.cli.main import main


@pytest.fixture(scope="module")
def model():
    return LabDDPM()


def test_its_classes_are_the_groups_and_its_null_label_comes_after_them(model):
    classes = model.world().classes
    n = len(classes)
    assert n == model.labels == model.null_label
    assert list(classes) == sorted(classes)
    assert model.encode([0, None, n - 1]).tolist() == [0, n, n - 1]
    with pytest.raises(ValueError, match=f"labels of this network are 0 … {n - 1}, got {n}"):
        model.encode([n])


def test_a_label_changes_what_is_drawn_and_a_row_needs_no_other_row(model):
    draw = {"seeds": [3, 4], "steps": 4}
    free = sample(model, **draw)
    some = sample(model, **draw, condition=model.encode([0, 5]))
    alone = sample(model, seeds=[4], steps=4, condition=model.encode([5]))
    assert not torch.allclose(free, some, atol=1e-2)
    torch.testing.assert_close(some[1:], alone, atol=1e-3, rtol=0)


def test_its_bank_knows_what_was_planted(model):
    world = model.world()
    planted = [caption for caption in world.bank.captions if world.planted(caption)]
    assert len(world.bank) == 1510 and len(planted) == len(DUPLICATED_IMAGE)
    assert {caption.removesuffix(" icon") for caption in planted} == set(DUPLICATED_IMAGE)


def test_it_runs_without_and_with_a_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for extra in ([], ["conditioning=label", "labels=[3]"]):
        quick = ["trainer=cpu", "metrics.extractor=none", "sampler.steps=2", "n_samples=2", *extra]
        assert main(["model=lab_ddpm", "guidance=sim", *quick]) == 0
    found = [json.loads(file.read_text())["metrics"] for file in Path("runs").glob("*/*/manifest.json")]
    assert len(found) == 2 and all(one["planted_copies"]["n"] == 2 for one in found)
