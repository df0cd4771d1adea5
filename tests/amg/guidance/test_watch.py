"""Detection (Eq. 10): values by hand, one look per step."""

from dataclasses import replace

import pytest
import torch

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance, Looks, Watch
from amg.guidance.looks import SPANS, late, learn, replay
from amg.metrics.values import Share
from amg.similarity import DescriptorSimilarity, Match
from amg.step import Step
from amg.thresholds import Constant


def step_at(similarities, t=0.5):
    """A step whose x̂0 is constant per sample: the similarity of `Mean` is that constant."""
    x0 = torch.tensor(similarities)[:, None, None, None].expand(-1, 3, 2, 2)
    b = len(x0)
    return Step(
        x_t=x0, t=torch.full((b,), t), timestep=500, alpha_bar=torch.full((b,), 0.5), eps=x0, eps_uncond=x0,
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
    watch = Watch(Mean(), Constant(0.5), margin=0.25)
    sight = watch(step_at([0.375, 0.375, 0.125]), watch(step_at([0.75, 0.25, 0.75])))
    assert sight.lam.tolist() == [0.25, 0.5, 0.25]
    assert sight.flagged.tolist() == [True, False, False] and sight.ever.tolist() == [True, False, True]


def test_a_step_is_compared_once_and_the_next_step_anew():
    similarity, step = Mean(), step_at([0.25, 0.75])
    watch = Watch(similarity, Constant(0.5))
    first = watch(step)
    again = watch(step, first)
    assert similarity.calls == 1 and torch.equal(first.similarity, again.similarity)
    assert watch(replace(step, x0=step.x0 + 0.5)).flagged.tolist() == [True, True] and similarity.calls == 2
    assert watch(step).flagged.tolist() == [False, True] and similarity.calls == 3


class Brightest:
    """The sum of squares of an image, whose gradient is twice the image."""

    def __call__(self, images):
        return Match(images.square().sum((1, 2, 3)), torch.arange(len(images)))


def test_who_was_flagged_before_is_decoded_once_for_both_look_and_slope():
    decoded = []

    def step(*values):
        return replace(step_at(values), decode=lambda x0: (decoded.append(len(x0)), 3 * x0)[1])

    watch = Watch(Brightest(), Constant(1.0), slopes=True)
    sight = watch(step(1.0, 0.0, 1.0, 0.0))  # 12 · 9 · value²
    assert sight.flagged.tolist() == [True, False, True, False] and decoded == [4]
    second = step(2.0, 1.0, 0.0, 0.0)
    sight = watch(second, sight)
    assert decoded == [4, 2, 2]  # those flagged before, and the others
    assert sight.similarity.tolist() == [432.0, 108.0, 0.0, 0.0]
    rows = sight.flagged.nonzero().flatten()
    slopes = watch.slope(second, rows)  # d(9 x²)/dx
    assert torch.equal(slopes, 18 * second.x0[rows]) and decoded == [4, 2, 2, 1]  # the second is newly flagged
    assert torch.equal(watch.images(second, torch.tensor([0, 3])), 3 * second.x0[[0, 3]])
    assert not any(tensor.requires_grad for tensor in (sight.similarity, watch.images(second, rows)))


def test_amg_and_whoever_asks_its_watch_share_a_step():
    similarity, step = Mean(), step_at([0.25, 0.75])
    guidance = AntiMemorizationGuidance(similarity, Constant(0.5))
    _, state = guidance(step, None)
    assert guidance.watch(step).flagged.tolist() == state.flagged.tolist() and similarity.calls == 1


LOOKS = Looks(
    times=(0.1, 0.3, 0.5), spans=(0.2, 0.4), gaps=((0.0, 0.0), (0.1, 0.3), (0.2, 0.4)), last=0.2, sampler="", rate=0.005
)


def test_a_sample_rests_by_its_gap():
    at = torch.full((4,), 0.5)
    until = LOOKS(at, torch.tensor([0.15, 0.25, 0.45, torch.nan]))
    assert until.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.5])  # the longest rest ends at the last step that matters
    between = LOOKS(at - 0.1, torch.tensor([0.15, 0.25, 0.15, 0.25]))  # both knots must grant it
    assert between.tolist() == pytest.approx([0.4, 0.2, 0.4, 0.2])
    assert LOOKS(at * 0.2, torch.tensor([0.01, -0.01, 1.0, 1.0])).tolist() == pytest.approx([-0.3, 0.1, -0.3, -0.3])


def test_samples_that_rest_are_neither_decoded_nor_compared():
    similarity, decoded = Mean(), []
    watch = Watch(similarity, Constant(0.5), looks=LOOKS)

    def at(values, t):
        step = step_at(values, t)
        return replace(step, decode=lambda x0: decoded.append(len(x0)) or x0)

    sight = watch(at([0.2, 0.45, 0.9], 0.5))
    assert sight.flagged.tolist() == [False, False, True]
    sight = watch(at([0.9, 0.45, 0.3], 0.4), sight)  # the first rests until 0.3; what was flagged is looked at anew
    assert sight.similarity.isnan().tolist() == [True, False, False] and sight.flagged.tolist() == [False] * 3
    assert torch.equal(watch.images(at([0.0] * 3, 0.4), torch.tensor([1])), torch.zeros(1, 3, 2, 2))
    sight = watch(at([0.9, 0.45, 0.3], 0.3), sight)
    assert sight.flagged.tolist() == [True, False, False] and sight.ever.tolist() == [True, False, True]
    assert decoded == [3, 2, 1, 3] and similarity.calls == 3


def test_a_step_at_which_all_rest_costs_nothing():
    similarity, watch = Mean(), Watch(Mean(), Constant(0.5), looks=LOOKS)
    sight = watch(step_at([0.0, 0.1], 0.5))
    watch.similarity = similarity
    sight = watch(step_at([0.9, 0.9], 0.4), sight)
    assert similarity.calls == 0 and sight.similarity.isnan().all() and not sight.ever.any()


def test_learned_looks_are_late_for_as_many_copies_as_stated():
    """A random walk towards λ: the share that is flagged late on trajectories that were not learned from."""
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(1, 0.02, 50)
    drift = torch.where(torch.arange(6000) % 2 == 0, 0.02, 0.0)  # every second one becomes a copy
    paths = 0.4 - (drift + 0.02 * torch.randn(50, 6000, generator=generator)).cumsum(0)
    copied = drift > 0
    known, new = paths[:, :3000], paths[:, 3000:]
    looks, told = learn(times, known, copied[:3000], "DDIMScheduler", 0.01, SPANS)
    missed = Share(int((late(looks, times, new) & copied[3000:]).sum()), 1500)
    assert missed.count > 0 and missed.interval[0] <= 0.01
    assert replay(looks, times, new[:, ~copied[3000:]]).double().mean() < 0.7 and told["late"] <= 0.01 * 750
    assert not late(looks, times, known[:, (known > 0).all(0)]).any()  # what is never flagged cannot be late


def test_too_few_copies_to_learn_looks_from():
    with pytest.raises(ValueError, match="100 copied trajectories at least, got 3"):
        learn(torch.linspace(1, 0, 5), torch.zeros(5, 8), torch.arange(8) < 3, "DDIMScheduler", 0.005, SPANS)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="guidance.margin must be >= 0, got -0.1"):
        Watch(Mean(), Constant(0.5), margin=-0.1)


class Blind:
    """An index that finds nothing but its first vector."""

    def __init__(self, vectors):
        self.vectors = vectors

    def search(self, queries, k=1):
        return queries @ self.vectors[:k].T, torch.zeros(len(queries), k, dtype=torch.long)


def test_the_neighbour_of_the_step_before_is_a_candidate_where_the_index_misses_it():
    bank = TrainingBank.from_tensors(torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    exact, blind = (DescriptorSimilarity(bank, lambda x: x.flatten(1), index=how) for how in ("exact", Blind))
    x0 = bank.pictures[[7, 3, 0]]
    step = replace(step_at([0.0] * 3), x0=x0)
    first = Watch(exact, Constant(0.9))(step)
    assert first.index.tolist() == [7, 3, 0]
    watch = Watch(blind, Constant(0.9))
    assert watch(step).index.tolist() == [0, 0, 0]
    found = watch(replace(step, x0=x0 * 0.5), first)
    assert found.index.tolist() == [7, 3, 0] and found.flagged.all()
    torch.testing.assert_close(found.similarity, torch.ones(3))
