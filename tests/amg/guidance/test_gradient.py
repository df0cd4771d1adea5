"""∇σ_t through the denoiser against finite differences, and the same in both samplers."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from tiny_pipelines import sdxl, stable_diffusion, unconditional

from amg.guidance import AntiMemorizationGuidance, Chain, Guidance
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.similarity import Match
from amg.thresholds import Always
from amg.worlds.closed_form import ClosedForm

PROMPTS, SEEDS = ["a cat", "two dogs", "sea"], [4, 5, 6]


def similarity(images):
    """A smooth one: the cosine to a fixed picture, whatever the row."""
    flat = images.flatten(1)
    picture = torch.sin(torch.arange(flat.shape[1], dtype=flat.dtype))
    return Match(torch.cosine_similarity(flat, picture[None]), torch.zeros(len(flat), dtype=torch.long))


def amg(gradient="through_unet", **options):
    return AntiMemorizationGuidance(similarity, Always(), terms="sim", gradient=gradient, **({"c3": 1.0} | options))


def gradient_of(step):
    """∇σ_t as G_sim = c3 √(1−ᾱ) ∇σ_t has it."""
    eps, _ = amg()(step, None)
    return (eps - step.eps) / (1 - step.alpha_bar).sqrt().view(-1, 1, 1, 1)


def along(function, x, gradient, n=6, h=1e-5):
    """Slopes of a function (B,) of x in n random directions: by central differences, and by the gradient; (n, B)."""
    found, expected = [], []
    for i in range(n):
        direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(i))
        found.append((gradient * direction).flatten(1).sum(1))
        expected.append((function(x + h * direction) - function(x - h * direction)) / (2 * h))
    return torch.stack(found), torch.stack(expected)


def x0_of(x, eps, alpha_bar):
    return (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def test_it_is_the_slope_of_similarity_along_the_exact_denoiser():
    world = ClosedForm(size=16, dtype=torch.float64)
    captions = [world.world().prompts[0], world.world().prompts[1], world.world().prompts[4]]
    condition, seen = world.encode(captions), []
    sample(world, SEEDS, prompts=captions, s0=3.0, steps=6, on_step=lambda step, _: seen.append(step))
    fixed_too = 0
    for step in seen[1:]:  # at the first ᾱ_t < 1e-4, where G_sim rests
        step = replace(step, decode=lambda x0: x0)  # the world clamps pictures with a straight-through gradient

        def slope_of(x, step=step):
            uncond, cond = (world.denoise(x, step.alpha_bar, c) for c in (None, condition))
            return similarity(uncond + 3 * (cond - uncond)).value

        found, expected = along(slope_of, step.x_t, gradient_of(step))
        scale = expected.abs().max()
        assert scale > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * scale.item())
        fixed, _ = amg("fixed_eps")(step, None)
        fixed = (fixed - step.eps) / (1 - step.alpha_bar).sqrt().view(-1, 1, 1, 1)
        fixed_too += torch.allclose(along(slope_of, step.x_t, fixed)[0], expected, rtol=0.01)
    assert fixed_too == 0  # holding ε fixed is another gradient


@pytest.mark.parametrize(
    ("build", "rescale"),
    [
        (functools.partial(stable_diffusion, dtype=torch.float64), 0.0),
        (functools.partial(stable_diffusion, dtype=torch.float64), 0.7),
        (functools.partial(stable_diffusion, dtype=torch.float64, prediction_type="v_prediction"), 0.0),
    ],
    ids=["eps", "rescaled", "v"],
)
def test_it_is_the_slope_of_similarity_along_a_guarded_unet(build, rescale):
    pipe, seen = build(), []
    guarded = guard(pipe, Guidance(), on_step=lambda step, _: seen.append(step))
    guarded(PROMPTS, guidance_scale=3.0, guidance_rescale=rescale, num_inference_steps=3, output_type="latent")
    cond, uncond = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    for step in seen:
        alpha_bar = step.alpha_bar[0].item()

        def slope_of(x, step=step, alpha_bar=alpha_bar):
            with torch.no_grad():
                both = pipe.unet(torch.cat([x, x]), step.timestep, torch.cat([uncond, cond])).sample
                u, c = both.chunk(2)
                output = u + 3 * (c - u)
                if rescale:
                    output = rescale_noise_cfg(output, c, rescale)
                if pipe.scheduler.config.prediction_type == "v_prediction":
                    x0 = alpha_bar**0.5 * x - (1 - alpha_bar) ** 0.5 * output
                else:
                    x0 = x0_of(x, output, alpha_bar)
                return similarity(pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample).value

        found, expected = along(slope_of, step.x_t, gradient_of(step))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("build", [stable_diffusion, sdxl], ids=["sd", "sdxl"])
@pytest.mark.parametrize("s0", [1.0, 5.0])
def test_a_guarded_pipeline_equals_sample(build, s0):
    pipe = build(dtype=torch.float64)
    model, method = StableDiffusion(copy.copy(pipe), scheduler=None), amg(c3=20.0)
    plain = sample(model, SEEDS, prompts=PROMPTS, s0=s0, steps=4)
    expected = sample(model, SEEDS, guidance=method, prompts=PROMPTS, s0=s0, steps=4)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": s0}
    got = guard(pipe, method)(PROMPTS, generator=generators, **options).images
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (expected - plain).flatten(1).abs().amax(1).min() > 1e-3


def test_without_text_and_where_the_scheduler_clips():
    """Clipped x̂0 keeps its value and passes the gradient on."""
    pipe, states = unconditional(DDIMPipeline, DDIMScheduler(clip_sample_range=0.3), torch.float64), []
    guard(pipe, amg(), on_step=lambda step, state: states.append((step, state)))(num_inference_steps=3)
    for step, state in states[1:]:
        assert step.x0.abs().max() <= 0.3 and (state.sim > 0).all() and not state.dropped.any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_it_is_the_same_in_every_gradient_mode_and_for_every_batch(context):
    model, method = StableDiffusion(stable_diffusion(dtype=torch.float64)), amg(c3=5.0)
    expected = sample(model, SEEDS, guidance=method, prompts=PROMPTS, s0=3.0, steps=3)
    model = StableDiffusion(stable_diffusion(dtype=torch.float64))
    with context():
        got = [sample(model, [s], guidance=method, prompts=[p], s0=3.0, steps=3)
               for p, s in zip(PROMPTS, SEEDS, strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.cat(got), expected, rtol=0, atol=1e-6)


def test_in_a_chain_x0_is_the_one_that_was_left_and_the_gradient_the_denoisers():
    class Moves(Guidance):
        def __call__(self, step, state):
            return step.eps + 0.1, state

    model, seen = StableDiffusion(stable_diffusion(dtype=torch.float64)), []
    sample(model, SEEDS, prompts=PROMPTS, s0=3.0, steps=3, on_step=lambda step, _: seen.append(step))
    step = seen[1]
    moved = step.with_eps(step.eps + 0.1)
    eps, _ = Chain([Moves(), amg()])(step, None)
    expected, _ = amg()(moved, None)
    assert torch.equal(eps, expected)
    alone, _ = amg()(step, None)
    assert not torch.allclose(eps - moved.eps, alone - step.eps)


def test_an_unknown_gradient_is_told():
    with pytest.raises(ValueError, match="guidance.gradient: unknown exact; choose fixed_eps or through_unet"):
        amg("exact")
