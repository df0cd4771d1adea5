"""The oracle equals the exact safe denoiser, removes all copies, and refuses what is no closed form."""

import pytest
import torch
from diffusers import DDIMScheduler
from toy import Toy

from amg.sampling import sample
from amg.worlds.closed_form import ClosedForm
from amg.worlds.oracle import Oracle

SEEDS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def world():
    return ClosedForm(size=16, dtype=torch.float64)


def safe_conditions(world, conditions):
    """The conditions of both branches as the oracle edits them."""
    encoded, null = world.encode(conditions), world.encode([None] * len(conditions))
    oracle = Oracle()
    x_T = torch.zeros(len(conditions), *world.shape)
    condition, same = oracle.prepare(world, conditions, encoded, x_T, SEEDS, None)
    assert same is x_T and not torch.equal(condition, encoded)
    return encoded, condition, null, oracle.prepare_null(world, null, SEEDS)


def test_it_is_the_exact_safe_denoiser(world):
    prompts = world.world().prompts[0:7:2]  # captions of planted images
    betas = []
    encoded, safe, null, safe_null = safe_conditions(world, prompts)
    for level in (0.02, 0.1, 0.3, 0.6):
        alpha_bar = torch.full((4,), level, dtype=torch.float64)
        clean = torch.cat([world.sample(1, prompt, seed=i)[0] for i, prompt in enumerate(prompts)])
        clean[::2] = (
            0.5 * clean[::2] + 0.5 * world.training.images[: len(clean[::2])]
        )  # between a novel image and a copy
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x_t = level**0.5 * clean + (1 - level) ** 0.5 * noise
        for condition, edited in ((encoded, safe), (null, safe_null)):
            joint = world.mixture.log_density(x_t.flatten(2), alpha_bar) + condition
            points = joint[:, : world.points].logsumexp(1)
            beta = (points - joint[:, world.points :].logsumexp(1)).exp().view(-1, 1, 1, 1)
            betas += beta.flatten().tolist()
            unsafe = condition.clone()
            unsafe[:, world.points :] = -torch.inf
            denoised = world.denoise(x_t, alpha_bar, condition)
            away = denoised - world.denoise(x_t, alpha_bar, unsafe)
            moderate = (beta < 1e3).expand_as(x_t)  # beyond it the right side cancels, not the left
            expected = torch.where(moderate, denoised + beta * away, 0)
            got = torch.where(moderate, world.denoise(x_t, alpha_bar, edited), 0)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert sum(1e-3 < beta < 1e3 for beta in betas) >= 8


def test_without_a_condition_it_is_the_law_of_the_other_components(world):
    condition, _ = Oracle().prepare(world, None, None, torch.zeros(2, *world.shape), SEEDS[:2], None)
    assert (condition[:, : world.points] == -torch.inf).all()
    assert torch.equal(condition[0, world.points :], world.weights[world.points :].log())
    plain, cleared = (sample(world, SEEDS, guidance=guidance, steps=6) for guidance in (None, Oracle()))
    assert not world.copies(cleared).any() and cleared.isfinite().all()
    assert plain.shape == cleared.shape


def test_it_clears_the_copies_of_planted_captions(world):
    prompts, seeds = world.world().prompts[:32:2], range(16)
    options = {"prompts": prompts, "s0": 7.5, "steps": 20}
    assert world.copies(sample(world, seeds, **options)).any()
    assert not world.copies(sample(world, seeds, guidance=Oracle(), **options)).any()


def test_other_models_are_refused_in_one_line():
    model = Toy(DDIMScheduler(clip_sample=False), conditional=True)
    with pytest.raises(ValueError, match="Toy has none: use ClosedForm"):
        sample(model, [1], guidance=Oracle(), prompts=["one"], s0=3.0, steps=1)


def test_a_condition_of_points_alone_is_refused(world):
    condition = torch.full_like(world.encode([None]), -torch.inf)
    condition[:, 0] = 0
    with pytest.raises(ValueError, match="condition 0 asks for planted points alone"):
        Oracle().prepare(world, None, condition, torch.zeros(1, *world.shape), [1], None)
