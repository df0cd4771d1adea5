"""guard: the same guidance inside the pipelines of diffusers, on tiny random ones."""

import copy
import functools
import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image
from tiny_pipelines import CONTROLNET, IMG2IMG, INPAINT, sdxl, stable_diffusion, unconditional

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.models.stable_diffusion import StableDiffusion
from amg.pipelines import TESTED, guard
from amg.sampling import sample
from amg.similarity import NormalizedL2
from amg.thresholds import Always, Constant

NAMES = ["one", "two", "six", "ten", "axe", "bee"]
PROMPTS = ["a cat", "two dogs", "sea"]
SEEDS = (4, 5, 6)
PICTURE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
MASK = Image.radial_gradient("L").resize((16, 16))

TEXT = {"prompt": PROMPTS}
PIPELINES = {
    "sd": (stable_diffusion, TEXT),
    "sd v": (functools.partial(stable_diffusion, prediction_type="v_prediction"), TEXT),
    "sd rescaled": (stable_diffusion, TEXT | {"guidance_rescale": 0.7}),
    "sd without cfg": (stable_diffusion, TEXT | {"guidance_scale": 1.0}),
    "sd, two a prompt": (stable_diffusion, {"prompt": PROMPTS[:1], "num_images_per_prompt": 3}),
    "sdxl": (sdxl, TEXT | {"guidance_scale": 7.5}),
    "img2img": (functools.partial(stable_diffusion, IMG2IMG), TEXT | {"image": [PICTURE] * 3, "strength": 0.75}),
    "inpaint 4": (
        functools.partial(stable_diffusion, INPAINT),
        TEXT | {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16},
    ),
    "inpaint 9": (
        functools.partial(stable_diffusion, INPAINT, channels=9),
        TEXT | {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16},
    ),
    "controlnet": (functools.partial(stable_diffusion, CONTROLNET), TEXT | {"image": [PICTURE] * 3}),
    "ddpm": (functools.partial(unconditional, DDPMPipeline, DDPMScheduler()), {"batch_size": 3}),
    "ddim": (functools.partial(unconditional, DDIMPipeline, DDIMScheduler()), {"batch_size": 3}),
}
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


def bank(size: int = 16) -> TrainingBank:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, size, size, generator=generator) * 2 - 1
    return TrainingBank.from_tensors(images, NAMES)


def amg(threshold=None, size: int = 16, **strengths) -> AntiMemorizationGuidance:
    strengths = strengths or {"c1": 2.0, "c2": 3.0, "c3": 5.0}
    nl2 = NormalizedL2(bank(size), k=3)

    def similarity(images):  # nL2 is negative, and these random pictures are all far: made positive, so that s1, s2 are
        match = nl2(images)
        return match._replace(value=3 + match.value)

    return AntiMemorizationGuidance(similarity, threshold or Always(), **strengths, captions=NAMES)


def call(pipe, options, seeds=SEEDS, steps=4):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = {"output_type": "latent"} if hasattr(pipe, "vae") else {"output_type": "pt"}
    return pipe(**options, generator=generators, num_inference_steps=steps, **latents).images


def size_of(name: str) -> int:
    return 8 if name in ("ddpm", "ddim") else 16


def remains(pipe) -> list:
    """What a guarded call could leave behind."""
    weights = [w.requires_grad for part in (pipe.unet, getattr(pipe, "vae", pipe.unet)) for w in part.parameters()]
    return [vars(pipe.scheduler).get("step"), len(pipe.unet._forward_hooks), weights]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_threshold_that_is_never_crossed_leaves_the_bare_pipelines_output_bit_by_bit(name):
    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    before = remains(pipe)
    seen = []
    guarded = guard(pipe, amg(Constant(1e9), size_of(name)), on_step=lambda step, state: seen.append((step, state)))
    assert torch.equal(call(guarded, options), expected)
    assert remains(pipe) == before
    assert len(seen) == (3 if name == "img2img" else 4) and not any(state.flagged.any() for _, state in seen)
    assert seen[0][0].s0 == (1.0 if "without" in name or name in ("ddpm", "ddim") else 7.5)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_crossed_threshold_changes_the_output(name):
    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    states = []
    got = call(guard(pipe, amg(None, size_of(name)), on_step=lambda step, state: states.append(state)), options)
    assert got.isfinite().all() and (got - expected).flatten(1).abs().amax(1).min() > 1e-3
    text = not ("without" in name or name in ("ddpm", "ddim"))
    for state in states:
        assert (state.sim > 0).all() and ((state.spe > 0) == text).all() and ((state.dup > 0) == text).all()


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


def test_the_edit_is_that_of_equations_13_to_17():
    pipe = stable_diffusion(dtype=torch.float64)
    seen = []
    guidance = amg(c1=0.5, c2=1.5, c3=0.7)
    call(guard(pipe, guidance, on_step=lambda step, state: seen.append((step, state))), {"prompt": PROMPTS}, steps=3)
    for step, state in seen:
        edited, again = guidance(step, None)
        sigma = state.similarity
        s1 = torch.minimum(0.5 * sigma, torch.tensor(6.5)).clamp(min=0)
        s2 = torch.minimum(1.5 * sigma, 6.5 - s1).clamp(min=0)
        neighbour = step.denoise(torch.arange(3), [NAMES[i] for i in state.index])
        x = step.x_t.clone().requires_grad_()
        noise = (1 - step.alpha_bar).sqrt().view(-1, 1, 1, 1)
        x0 = (x - noise * step.eps) / step.alpha_bar.sqrt().view(-1, 1, 1, 1)
        (gradient,) = torch.autograd.grad(guidance.similarity(step.decode(x0)).value.sum(), x)
        expected = (
            -s1.view(-1, 1, 1, 1) * (step.eps_cond - step.eps_uncond)
            - s2.view(-1, 1, 1, 1) * (neighbour - step.eps_uncond)
            + 0.7 * noise * gradient
        )
        torch.testing.assert_close(edited - step.eps, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in PIPELINES if "without" not in name and name[0] != "d"])
def test_the_neighbours_branch_of_ones_own_prompt_is_ones_own_prediction(name):
    """Rows are sliced by name, whatever else the denoiser is fed: the prompt again gives the prediction again."""
    build, options = PIPELINES[name]
    pipe = build()
    checked = []

    class Asks(Guidance):
        def __call__(self, step, state):
            prompts = (options["prompt"] * 3)[:3]
            rows = torch.tensor([2, 0])
            got = step.denoise(rows, [prompts[2], prompts[0]])
            torch.testing.assert_close(got, step.eps_cond[rows], rtol=1e-4, atol=1e-5)
            other = step.denoise(rows, ["zebra", "zebra"])
            checked.append((other - step.eps_cond[rows]).abs().max().item() > 1e-4)
            return step.eps, None

    call(guard(pipe, Asks()), options)
    assert len(checked) >= 3 and all(checked)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["guidance", "callback"])
def test_the_pipe_is_as_before_after_an_error(error, place):
    pipe = stable_diffusion()
    options = {"prompt": PROMPTS}
    expected, before = call(pipe, options), remains(pipe)

    def stop(*args):
        raise error("stop")

    guidance = Guidance() if place == "callback" else stop
    extra = {"callback_on_step_end": stop} if place == "callback" else {}
    with pytest.raises(error, match="stop"):
        call(guard(pipe, guidance), options | extra)
    assert remains(pipe) == before
    assert torch.equal(call(pipe, options), expected)


def test_half_of_a_batch_flagged_leaves_the_other_half_as_it_was():
    pipe = stable_diffusion()
    expected = call(pipe, {"prompt": PROMPTS})
    plain = amg()
    guidance = amg()
    # the first row is never alike, whatever its picture
    guidance.similarity = lambda x: (lambda m: m._replace(value=torch.cat([m.value[:-1], m.value[-1:] * 0 - 9])))(
        plain.similarity(x)
    )
    guidance.threshold = Constant(-5.0)
    got = call(guard(pipe, guidance), {"prompt": PROMPTS})
    assert torch.equal(got[-1], expected[-1]) and not torch.equal(got[0], expected[0])


def test_seeds_come_from_the_generators_and_else_differ_by_row():
    pipe, seen = stable_diffusion(), []
    guarded = guard(pipe, Guidance(), on_step=lambda step, state: seen.append(step.seeds))
    options = {"num_inference_steps": 1, "output_type": "latent"}
    guarded(PROMPTS, generator=[torch.Generator().manual_seed(s) for s in (9, 3, 7)], **options)
    guarded(PROMPTS, generator=torch.Generator().manual_seed(20), **options)
    torch.manual_seed(100)
    guarded(PROMPTS, **options)
    assert seen == [(9, 3, 7), (20, 21, 22), (100, 101, 102)]


def test_a_guidance_may_rewrite_the_prompts():
    class Shout(Guidance):
        def prompts(self, prompts, seeds):
            return [f"{prompt} s{'x' * (seed - 3)}" for prompt, seed in zip(prompts, seeds, strict=True)]

    pipe = stable_diffusion()
    expected = call(pipe, {"prompt": ["a cat sx", "two dogs sxx", "sea sxxx"]})
    assert torch.equal(call(guard(pipe, Shout()), {"prompt": PROMPTS}), expected)


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


def test_attributes_pass_through_and_moving_keeps_the_guard():
    pipe = stable_diffusion()
    guarded = guard(pipe, Guidance())
    assert guarded.unet is pipe.unet
    guarded.scheduler = scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler is scheduler
    assert guarded.to("cpu") is guarded


def test_the_table_of_tested_pipelines_is_tested():
    built = {type(build()).__name__ for build, _ in PIPELINES.values()}
    assert built == set(TESTED)
