"""Detection (Eq. 10): values by hand, one look per step."""

from dataclasses import replace

import pytest
import torch

from amg.guidance import AntiMemorizationGuidance, Watch
from amg.similarity import Match
from amg.step import Step
from amg.thresholds import Constant


def step_at(similarities):
    """A step whose x̂0 is constant per sample: the similarity of `Mean` is that constant."""
    x0 = torch.tensor(similarities)[:, None, None, None].expand(-1, 3, 2, 2)
    b = len(x0)
    return Step(
        x_t=x0, t=torch.full((b,), 0.5), timestep=500, alpha_bar=torch.full((b,), 0.5), eps=x0, eps_uncond=x0,
        eps_cond=None, s0=1.0, seeds=tuple(range(b)), x0=x0, denoise=None, decode=lambda x0: x0,
    )  # fmt: skip


class Mean:
    """The mean of an image as its similarity to training image 7; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return Match(images.mean((1, 2, 3)), torch.full((len(images),), 7))


def test_samples_above_the_threshold_are_flagged():
    sight = Watch(Mean(), Constant(0.5))(step_at([0.25, 0.5, 0.75]))
    assert sight.flagged.tolist() == sight.ever.tolist() == [False, False, True]
    assert sight.lam.tolist() == [0.5] * 3 and sight.index.tolist() == [7] * 3


def test_the_margin_holds_samples_that_were_flagged_before():
    sight = Watch(Mean(), Constant(0.5), margin=0.25)(step_at([0.375, 0.375, 0.125]), torch.tensor([True, False, True]))
    assert sight.lam.tolist() == [0.25, 0.5, 0.25]
    assert sight.flagged.tolist() == [True, False, False] and sight.ever.tolist() == [True, False, True]


def test_a_step_is_compared_once_and_the_next_step_anew():
    similarity, step = Mean(), step_at([0.25, 0.75])
    watch = Watch(similarity, Constant(0.5))
    first, again = watch(step), watch(step, torch.tensor([True, True]))
    assert similarity.calls == 1 and torch.equal(first.similarity, again.similarity)
    assert watch(replace(step, x0=step.x0 + 0.5)).flagged.tolist() == [True, True] and similarity.calls == 2
    assert watch(step).flagged.tolist() == [False, True] and similarity.calls == 3


def test_amg_and_whoever_asks_its_watch_share_a_step():
    similarity, step = Mean(), step_at([0.25, 0.75])
    guidance = AntiMemorizationGuidance(similarity, Constant(0.5))
    _, state = guidance(step, None)
    assert guidance.watch(step).flagged.tolist() == state.flagged.tolist() and similarity.calls == 1


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="guidance.margin must be >= 0, got -0.1"):
        Watch(Mean(), Constant(0.5), margin=-0.1)
