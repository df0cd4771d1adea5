"""guard under every scheduler: what a guidance sees, and equality with `sample` and among samplers."""

import copy
import functools
import inspect

import diffusers
import pytest
import torch
from guarded import PROMPTS, SEEDS, amg, call
from tiny_pipelines import sdxl, stable_diffusion, stable_diffusion_3

from amg.guidance import Guidance
from amg.guidance.rivals.han import InitialNoiseAdjustment
from amg.guidance.rivals.somepalli import GaussianNoiseInput
from amg.guidance.rivals.wen import PromptEmbeddingOptimization
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.thresholds import Constant

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
SKIP = {"PNDMScheduler": {"skip_prk_steps": True}}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_scheduler_sees_the_edit_of_eps_as_the_view_says(scheduler, prediction_type):
    """Unedited it is bit-equal; and an edit moves the scheduler's own x̂0 by −√(1−ᾱ)/√ᾱ Δε."""
    pipe = stable_diffusion(dtype=torch.float64, prediction_type=prediction_type)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **SKIP.get(scheduler, {}))
    options = {"prompt": PROMPTS, "guidance_scale": 3.0}
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, Guidance()), options), expected)
    steps = []
    call(guard(pipe, Guidance(), on_step=lambda step, state: steps.append(step)), options)
    alpha_bars = [step.alpha_bar[0].item() for step in steps]
    assert alpha_bars == sorted(alpha_bars) and len(steps) == 4 + (scheduler == "PNDMScheduler")
    for step in steps:  # the view is variance-preserving: ε̂ of x_t gives back x̂0
        torch.testing.assert_close(step.predict_x0(step.eps), step.x0)
    assert steps[0].x_t.std().item() == pytest.approx(1, abs=0.1)  # pure noise at the start, whatever its scale


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_first_order_steps_of_other_families_equal_ddims(scheduler):
    """DDIM, first-order DPM-Solver++ and Euler are one ODE step; so is the guided chain, up to float32 in theirs."""
    outputs = []
    for kind in ("DDIMScheduler", scheduler):
        pipe = stable_diffusion(dtype=torch.float64)
        same = {"timestep_spacing": "trailing", "solver_order": 1, "set_alpha_to_one": True}
        same["final_sigmas_type"] = "zero"
        accepted = inspect.signature(getattr(diffusers, kind).__init__).parameters
        same = {name: value for name, value in same.items() if name in accepted}
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **same)
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        first = torch.cat([torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64) for g in generators])
        guidance, states = amg(c1=1.0, c2=1.0, c3=0.5), []
        sigma = float(pipe.scheduler.init_noise_sigma)  # the pipeline multiplies by it; x = √(1+σ²) x_t starts alike
        latents = first if sigma == 1 else first * (1 + sigma**2) ** 0.5 / sigma
        order = {"num_inference_steps": 1 if scheduler == "LMSDiscreteScheduler" else 4}
        guarded = guard(pipe, guidance, on_step=lambda step, state, states=states: states.append(state))
        outputs.append(guarded(PROMPTS, latents=latents, output_type="latent", guidance_scale=3.0, **order).images)
        assert all((state.spe > 0).all() and (state.dup > 0).all() for state in states)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(stable_diffusion, dtype=torch.float64),
        functools.partial(stable_diffusion, dtype=torch.float64, prediction_type="v_prediction"),
        functools.partial(sdxl, torch.float64),
    ],
    ids=["sd", "sd v", "sdxl"],
)
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_guarded_pipeline_equals_sample(build, kind):
    pipe = build()
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    threshold = Constant(0.5)
    model = StableDiffusion(copy.copy(pipe), scheduler=None)
    traces = [], []
    first, second = (lambda *seen: traces[0].append(seen)), (lambda *seen: traces[1].append(seen))
    expected = sample(model, SEEDS, None, amg(threshold), prompts=PROMPTS, s0=7.5, steps=6, on_step=first)
    guarded = guard(pipe, amg(threshold), on_step=second)
    got = call(guarded, {"prompt": PROMPTS, "guidance_scale": 7.5}, steps=6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    flagged = torch.stack([state.flagged for _, state in traces[0]])
    assert flagged.any()
    for (step, state), (other, theirs) in zip(*traces, strict=True):
        assert step.seeds == other.seeds and step.s0 == other.s0
        torch.testing.assert_close(step.t, other.t)
        torch.testing.assert_close(step.alpha_bar, other.alpha_bar)
        torch.testing.assert_close(state.s2, theirs.s2, rtol=1e-5, atol=1e-5)
        assert torch.equal(state.flagged, theirs.flagged)


PREPARE = {
    "gni": GaussianNoiseInput(scale=0.3),
    "wen": PromptEmbeddingOptimization(target=0.0, iterations=2),
    "han": InitialNoiseAdjustment(iterations=2),
}


@pytest.mark.parametrize("method", PREPARE)
@pytest.mark.parametrize("build", [stable_diffusion, sdxl, stable_diffusion_3])
def test_methods_that_edit_embeddings_or_the_first_noise_are_as_in_sample(build, method):
    pipe, options = build(dtype=torch.float64), {"prompt": PROMPTS, "guidance_scale": 7.5}
    bare = call(pipe, options)
    got = call(guard(pipe, PREPARE[method]), options)
    assert got.isfinite().all() and (got - bare).flatten(1).abs().amax(1).min() > 1e-6
    if build is not stable_diffusion_3:
        model = StableDiffusion(copy.copy(pipe), scheduler=None)
        expected = sample(model, SEEDS, guidance=PREPARE[method], prompts=PROMPTS, s0=7.5, steps=4)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(call(pipe, options), bare)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_shift_is_added_after_the_step_in_the_view_of_the_guidance(kind):
    class Shift(Guidance):
        def shift(self, step, eps, state, x_prev):
            return torch.ones_like(step.x_t)

    pipe = stable_diffusion()
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    plain, shifted = [], []
    call(guard(pipe, Guidance(), lambda step, state: plain.append(step.x_t)), {"prompt": PROMPTS}, steps=3)
    call(guard(pipe, Shift(), lambda step, state: shifted.append(step.x_t)), {"prompt": PROMPTS}, steps=3)
    torch.testing.assert_close(shifted[1] - plain[1], torch.ones_like(plain[1]), rtol=1e-4, atol=1e-4)
