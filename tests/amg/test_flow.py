"""The flow view: σ, ᾱ, x and v against hand arithmetic, and the closed form sampled as a flow."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from toy import Toy

from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.metrics.values import Share
from amg.sampling import sample
from amg.schedule import check, exact_noise_level, noise_level, own_scheduler, prediction_type
from amg.similarity import PCASimilarity
from amg.thresholds import Constant
from amg.worlds.closed_form import ClosedForm

FLOW = FlowMatchEulerDiscreteScheduler
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.fixture(scope="module")
def world():
    return ClosedForm(size=16).world()


def test_the_level_of_a_flow_is_that_of_its_sigma_and_at_pure_noise_alpha_bar_stays_above_zero():
    scheduler = FLOW(shift=3.0)
    scheduler.set_timesteps(4)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        alpha_bar, factor = noise_level(scheduler, timestep)
        size = ((1 - sigma) ** 2 + sigma**2) ** 0.5
        assert factor.item() == pytest.approx(1 / size)
        assert alpha_bar.item() == pytest.approx(max(((1 - sigma) / size).item() ** 2, 1e-5))
    assert exact_noise_level(scheduler, scheduler.timesteps[0])[0] == 0


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DPMSolverMultistepScheduler, DEISMultistepScheduler])
def test_solvers_with_flow_sigmas_are_flows(kind):
    scheduler = kind(**FLOW_SIGMAS)
    check(scheduler)
    scheduler.set_timesteps(5)
    x0, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).unbind(0)
    sigma = scheduler.sigmas[0].double()
    alpha_bar, factor = exact_noise_level(scheduler, scheduler.timesteps[0])
    x_t = ((1 - sigma) * x0 + sigma * eps) * factor
    torch.testing.assert_close(x_t, alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps)
    assert prediction_type(scheduler) == "flow_prediction"


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (SASolverScheduler(**FLOW_SIGMAS), "SASolverScheduler is untested"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "flow_prediction go together"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction"), "flow_prediction go together"),
        (FLOW(invert_sigmas=True), "invert_sigmas is untested"),
    ],
)
def test_other_flows_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        check(scheduler)


def test_a_network_is_asked_only_for_the_noise_levels_that_it_was_trained_on():
    ddim, flow = Toy(DDIMScheduler()), Toy(FLOW())
    ddim.denoise = flow.denoise = None
    with pytest.raises(ValueError, match="FlowMatchEuler.* asks Toy for noise levels that it was not trained on"):
        own_scheduler(ddim, FLOW, 4)
    with pytest.raises(ValueError, match="DDIMScheduler asks Toy.*sampler=flow"):
        own_scheduler(flow, DDIMScheduler, 4)


def test_a_flow_network_is_fed_the_schedulers_sample_and_sampled_as_by_hand():
    model, fed = Toy(FLOW(shift=2.0)), []

    class Velocity(Toy):
        def __call__(self, x, timestep, condition):
            fed.append(x)
            return self.unet(x, timestep).sample, None

    model.__class__ = Velocity
    drawn = sample(model, [3], steps=4)
    scheduler = FLOW(shift=2.0)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for i, timestep in enumerate(scheduler.timesteps):
        torch.testing.assert_close(fed[i], x)
        x = x + (scheduler.sigmas[i + 1] - scheduler.sigmas[i]) * model.unet(x, timestep).sample
    torch.testing.assert_close(drawn, x)


def test_the_closed_forms_velocity_is_exact(world):
    """v = (x − E[x_0 | x]) / σ and x' = x + (σ' − σ) v, the law being asked at x/k and (1−σ)²/k²."""
    model, seen = world.model, []
    sample(model, [0, 1], scheduler=FLOW, steps=6, on_step=lambda step, state: seen.append(step))
    sigmas = [1 - 0.1998 * i for i in range(6)]  # from 1 to 1/1000
    for step, later, sigma, after in zip(seen, seen[1:], sigmas, sigmas[1:], strict=False):
        size, size_after = (((1 - s) ** 2 + s**2) ** 0.5 for s in (sigma, after))
        x = step.x_t * size
        x0 = model.denoise(step.x_t, torch.full((2,), ((1 - sigma) / size) ** 2, dtype=torch.float64))
        torch.testing.assert_close(later.x_t * size_after, x + (after - sigma) * (x - x0) / sigma, rtol=0, atol=2e-5)
        assert step.t[0].item() == pytest.approx(sigma)
        if sigma < 1:
            torch.testing.assert_close(step.x0, x0, rtol=0, atol=1e-5)
            torch.testing.assert_close(step.eps, x + (1 - sigma) * (x - x0) / sigma, rtol=0, atol=1e-5)


def test_the_closed_form_as_a_flow_copies_as_ddim_does_and_all_terms_clear_it(world):
    prompts = [prompt for prompt in world.prompts if world.cause(prompt) != "ordinary"] * 2
    seeds, options = range(len(prompts)), {"prompts": prompts, "s0": 3.0, "steps": 25}
    drawn = {kind: sample(world.model, seeds, scheduler=kind, **options) for kind in (DDIMScheduler, FLOW)}
    ddim, flow = (Share(int(world.truth.copies(x).sum()), len(x)) for x in drawn.values())
    low, high = ddim.interval
    assert low < flow.value < high and flow.value > 0.3

    def guided(threshold, on_step=None):
        guidance = AntiMemorizationGuidance(
            PCASimilarity(world.bank), Constant(threshold), c1=1.0, c2=10.0, c3=30.0, normalize=True
        )
        return sample(world.model, seeds, scheduler=FLOW, guidance=guidance, on_step=on_step, **options)

    states = []
    got = guided(0.9, lambda step, state: states.append(state))
    assert not world.truth.copies(got).any() and world.truth.answers(prompts, got).float().mean() > 0.97
    for term in ("spe", "dup", "sim"):
        assert any((getattr(state, term) > 0).any() for state in states)
    assert torch.equal(guided(9.0), drawn[FLOW])


def test_a_shift_is_added_in_the_view_of_the_guidance(world):
    class Shift(Guidance):
        def shift(self, step, eps, state, x_prev):
            return torch.ones_like(x_prev)

    plain, shifted = [], []
    for guidance, seen in ((Guidance(), plain), (Shift(), shifted)):
        sample(
            world.model, [0], None, guidance, scheduler=FLOW, steps=3, on_step=lambda *s, seen=seen: seen.append(s[0])
        )
    torch.testing.assert_close(shifted[1].x_t - plain[1].x_t, torch.ones_like(plain[1].x_t), rtol=0, atol=1e-5)
