"""Named settings against the released code's numbers."""

import pytest
import torch

from amg import AntiMemorizationGuidance, TrainingBank
from amg.similarity import NormalizedL2


@pytest.fixture
def bank():
    return TrainingBank.from_tensors(torch.rand(4, 3, 8, 8) * 2 - 1, list("abcd"))


@pytest.mark.parametrize("t, expected", [(0, 0.4), (100, 0.36065), (999, 0.30068)])
def test_main_preset_has_the_released_threshold(bank, t, expected):
    guidance = AntiMemorizationGuidance.preset("sd-main", bank=bank, similarity=NormalizedL2(bank))
    assert guidance.watch.threshold(t / 999) == pytest.approx(expected, abs=1e-5)


def test_strong_preset_flags_whatever_main_flags(bank):
    main, strong = (
        AntiMemorizationGuidance.preset(name, bank=bank, similarity=NormalizedL2(bank)).watch.threshold
        for name in ("sd-main", "sd-strong")
    )
    assert all(strong(t / 10) < main(t / 10) for t in range(11))


def test_missing_descriptor_and_unknown_preset_are_told_in_one_line(bank, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="sscd_disc_mixup"):
        AntiMemorizationGuidance.preset("sd-main", bank=bank)
    with pytest.raises(ValueError, match="sd-main"):
        AntiMemorizationGuidance.preset("sd", bank=bank)
