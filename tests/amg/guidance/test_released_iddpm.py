"""The authors' CIFAR-10 guidance: worked by hand, against brute-force noising, and inside a real chain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_iddpm import Spaced, random_network
from scipy.stats import ks_2samp

from amg import TrainingBank, sample
from amg.bank.cifar10 import read_cifar10
from amg.guidance.base import Guidance
from amg.guidance.rivals.released_iddpm import ReleasedIDDPM
from amg.models.ddpm import DDPM
from amg.models.iddpm import convert, scheduler
from amg.step import Step
from amg.thresholds import Constant

PICTURES = Path(__file__).parents[2] / "data" / "cifar10_200.parquet"


def points(*values):
    """Pictures of one pixel, (N, 3, 1, 1), all on the red axis."""
    return torch.tensor([[value, 0.0, 0.0] for value in values]).view(-1, 3, 1, 1)


def step_at(*values, alpha_bar=0.25, variance=0.01, seeds=None, x_t=None, timestep=100):
    x0 = points(*values)
    return Step(
        x_t=x0 if x_t is None else x_t,
        t=torch.full((len(x0),), 0.5),
        timestep=timestep,
        alpha_bar=torch.full((len(x0),), alpha_bar),
        eps=torch.zeros_like(x0),
        eps_uncond=torch.zeros_like(x0),
        eps_cond=None,
        s0=1.0,
        seeds=tuple(range(len(x0))) if seeds is None else seeds,
        x0=x0,
        denoise=lambda rows, captions: pytest.fail("no text here"),
        decode=lambda x: x,
        variance=None if variance is None else torch.full_like(x0, variance),
    )


@pytest.fixture
def two():
    return TrainingBank.from_tensors(points(0.0, 1.0))


def paper_like(bank, **options):
    options = {"k": 2, "noised": False, "arm": None, "threshold": Constant(-1.95), "strength": 10.0} | options
    return ReleasedIDDPM(bank, **options)


def test_push_worked_by_hand(two):
    # x̂0 at 0.2: distances 0.2 and 0.8, mean 0.5, nL2 = 0.2 / (0.5 · 0.5) = 0.8, ∇nL2 = 1 / 0.25 = 4 away from 0
    # through x̂0 = … + x_t / √0.25: 8. Strength 10 · (1.95 − 0.8) = 11.5, so g = 92 and Σ g = 0.92
    guidance, step = paper_like(two), step_at(0.2)
    eps, state = guidance(step, None)
    assert eps is step.eps
    assert state.similarity.item() == pytest.approx(-0.8) and state.index.item() == 0 and state.flagged.item()
    torch.testing.assert_close(guidance.shift(step, eps, state, step.x_t), points(0.92))
    assert state.sim.item() == pytest.approx(92)


def test_paper_options_worked_by_hand(two):
    # constant strength 10: g = 80; through ε: −√(1 − 0.25) · 80
    guidance = paper_like(two, adaptive=False, through="eps")
    step = step_at(0.2, variance=None)
    eps, state = guidance(step, None)
    torch.testing.assert_close(eps, points(-(0.75**0.5) * 80))
    assert guidance.shift(step, eps, state, step.x_t) is None


def test_default_threshold_is_the_released_curve(two):
    released = ReleasedIDDPM(two, k=2).threshold
    # 1.95 − 0.45 exp(−0.025 t): 1.5, 1.95 − 0.45 · e^−2.5, 1.95 − 0.45 · e^−6.225
    for t, distance in ((0, 1.5), (100, 1.913062), (249, 1.949109)):
        assert -released(t / 249) == pytest.approx(distance, abs=1e-5)


def test_arming_quiet_steps_and_rest_worked_by_hand(two):
    # nL2 = 4 d1 / (d1 + d2): 0.2 → 0.8, guided; 0.4 → 1.6, below λ = 1.7 but not below arm = 1.5; 0.45 → 1.8, quiet
    guidance = paper_like(two, arm=1.5, threshold=Constant(-1.7), quiet=3, rest=5)
    places = [0.4, 0.45, 0.2, 0.4, 0.45, 0.45, 0.4, 0.45, 0.45, 0.45] + [0.2] * 7
    flagged, rested, state = [], [], None
    for place in places:
        _, state = guidance(step_at(place), state)
        flagged.append(bool(state.flagged))
        rested.append(bool(state.similarity.isnan()))
    #            not armed      armed       two quiet     guided  three quiet   five of rest   awake
    assert flagged == [False] * 2 + [True] * 2 + [False] * 2 + [True] + [False] * 3 + [False] * 5 + [True] * 2
    assert rested == [False] * 10 + [True] * 5 + [False] * 2


@pytest.mark.parametrize("rest, sleeping", [(0, 0), (5, 5), (10, 10)])
def test_rest_lasts_as_long_as_it_says_and_longer_than_the_quiet_that_led_to_it(two, rest, sleeping):
    guidance, state, rested = paper_like(two, rest=rest), None, 0
    for place in [0.2, 0.5, 0.5, 0.5] + [0.2] * 12:
        _, state = guidance(step_at(place), state)
        rested += bool(state.similarity.isnan())
    assert rested == sleeping


def test_each_sample_rests_for_itself(two):
    guidance = paper_like(two, quiet=1, rest=2)
    _, state = guidance(step_at(0.2, 0.5), None)
    assert state.rest.tolist() == [0, 2]
    _, state = guidance(step_at(0.2, 0.2), state)
    assert state.flagged.tolist() == [True, False] and state.index.tolist() == [0, -1]


def brute_force(x, pictures, alpha_bar, k, scale, generator):
    noise = torch.randn(pictures.shape, generator=generator, dtype=x.dtype)
    noised = alpha_bar**0.5 * pictures + (1 - alpha_bar) ** 0.5 * noise
    near, places = torch.linalg.vector_norm(noised - x, dim=1).sort()
    return near[0] / (scale * near[:k].mean()), places[0]


@pytest.mark.parametrize("alpha_bar", [0.9, 0.3])
def test_two_numbers_a_picture_have_the_law_of_noising_them_all(alpha_bar):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 2, 2, generator=generator, dtype=torch.float64) * 2 - 1
    x = (0.6 * pictures[:1] + 0.3 * torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64)).double()
    bank, n = TrainingBank.from_tensors(pictures.float()), 3000
    step = step_at(*[0.0] * n, alpha_bar=alpha_bar, x_t=x.expand(n, -1, -1, -1))
    _, state = ReleasedIDDPM(bank, k=3, arm=None)(step, None)
    expected = [brute_force(x.flatten(), pictures.flatten(1), alpha_bar, 3, 0.5, generator) for _ in range(n)]
    assert ks_2samp(-state.similarity, torch.stack([value for value, _ in expected])).pvalue > 0.01
    shares = torch.bincount(state.index, minlength=6) / n
    theirs = torch.bincount(torch.stack([place for _, place in expected]), minlength=6) / n
    assert (shares - theirs).abs().max() < 4 * (0.5 / n) ** 0.5


def test_kept_noise_lies_at_the_distance_that_was_found(two):
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    along, across = torch.randn(4, 1, generator=generator).double(), torch.rand(4, 1, generator=generator).double() * 20
    draws = [np.random.default_rng(seed) for seed in range(4)]
    noise = ReleasedIDDPM(two, k=2, redraw=False)._neighbour_noise(draws, away, along, across)
    expected = (away.norm(dim=1, keepdim=True) - 0.6 * along).square() + 0.36 * across
    torch.testing.assert_close((away - 0.6 * noise).square().sum(1, keepdim=True), expected)


def test_draws_depend_on_the_seed_and_the_step_and_not_on_the_batch():
    bank = TrainingBank.from_tensors(read_cifar10(PICTURES)[0][:60])
    guidance = ReleasedIDDPM(bank, arm=None)
    x_t = torch.randn(3, 3, 32, 32)
    step = replace(step_at(0, 0, 0, seeds=(4, 5, 5)), x_t=x_t[[0, 1, 1]])
    _, state = guidance(step, None)
    assert state.similarity[1] == state.similarity[2] != state.similarity[0]
    _, alone = guidance(replace(step_at(0, seeds=(5,)), x_t=x_t[1:2]), None)
    torch.testing.assert_close(alone.similarity[0], state.similarity[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(alone.push[0], state.push[1], rtol=1e-4, atol=1e-3)
    _, later = guidance(replace(step, timestep=99), None)
    assert later.similarity[0] != state.similarity[0]


# -- in a real chain -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("released")
    reference = random_network(width=32)
    torch.save(reference.state_dict(), path / "checkpoint.pt")
    return reference, DDPM(convert(path / "checkpoint.pt", path / "model"))


class Lean(Guidance):
    """Adds Σ times a constant to the mean."""

    def shift(self, step, eps, state, x_prev):
        return 30 * step.variance


def test_shift_joins_the_posterior_mean_as_in_improved_diffusion(world):
    reference, model = world
    generator = torch.Generator().manual_seed(5)
    noise = lambda i=None: torch.randn(1, 3, 32, 32, generator=generator)  # noqa: E731
    expected = Spaced(steps=25).chain(reference, noise(), noise, shift=lambda variance, i: 30 * variance)
    actual = sample(model, [5], guidance=Lean(), steps=25)
    assert (actual - expected).abs().max() <= 1e-3
    assert (actual - sample(model, [5], steps=25)).abs().max() > 0.1


def test_never_armed_sample_equals_its_unguided_twin(world):
    bank = TrainingBank.from_tensors(read_cifar10(PICTURES)[0])
    guided = sample(world[1], [5, 6], guidance=ReleasedIDDPM(bank, arm=0.0), steps=4)
    assert torch.equal(guided, sample(world[1], [5, 6], steps=4))


class Memorizer:
    """A network that has memorized one picture: its ε always points there."""

    def __init__(self, picture):
        self.picture, self.scheduler, self.shape = picture, scheduler(), (3, 32, 32)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def __call__(self, x_t, timestep, condition):
        alpha_bar = self.scheduler.alphas_cumprod[timestep]
        eps = (x_t - alpha_bar.sqrt() * self.picture) / (1 - alpha_bar).sqrt()
        return eps, torch.zeros_like(eps)

    def decode(self, x0):
        return x0


def test_once_armed_the_chain_keeps_farther_from_its_neighbour_than_its_twin():
    bank = TrainingBank.from_tensors(read_cifar10(PICTURES)[0])
    chains = []
    for guidance in (ReleasedIDDPM(bank, arm=0.0), ReleasedIDDPM(bank)):
        trace = []
        sample(
            Memorizer(bank.pictures[17]),
            [1],
            guidance=guidance,
            steps=50,
            on_step=lambda step, state, trace=trace: trace.append((step, state)),
        )
        chains.append(trace)
    plain, guided = chains
    flagged = [bool(state.flagged) for _, state in guided]
    first = flagged.index(True)
    assert 5 < first < 40 and not any(state.flagged for _, state in plain)

    def distance(step):
        noiseless = step.alpha_bar.sqrt() * bank.pictures[17]
        return torch.linalg.vector_norm(step.x_t - noiseless).item()

    assert guided[first][1].index.item() == 17 and guided[first][1].similarity > -1.5
    for (a, _), (b, _) in zip(plain[: first + 1], guided[: first + 1], strict=True):
        assert torch.equal(a.x_t, b.x_t)
    assert all(
        distance(b) > distance(a) for (a, _), (b, _) in zip(plain[first + 1 :], guided[first + 1 :], strict=True)
    )


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_model_without_learned_variance_is_told_what_to_choose(two):
    with pytest.raises(ValueError, match="through=mean needs the variance.*through=eps"):
        ReleasedIDDPM(two, k=2)(step_at(0.2, variance=None), None)


@pytest.mark.parametrize(
    "options, message",
    [({"through": "x0"}, "mean or eps"), ({"quiet": 0}, "quiet must be"), ({"rest": -1}, "rest >= 0"), ({}, "2 … 2")],
)
def test_options_out_of_range_are_named(two, options, message):
    with pytest.raises(ValueError, match=message):
        ReleasedIDDPM(two, **({"k": 2} | options if options else {"k": 50}))


def test_pictures_of_another_size_are_refused(two):
    with pytest.raises(ValueError, match=r"samples are \(3, 2, 2\), the bank's images \(3, 1, 1\)"):
        ReleasedIDDPM(two, k=2)(replace(step_at(0.2), x_t=torch.zeros(1, 3, 2, 2)), None)
