"""guard on transformers and flows: what is particular to them; what all pipelines share is in test_guard*.py."""

import functools
import re
from pathlib import Path

import diffusers
import pytest
import torch
from guarded import FLOWS, PICTURE, PIPELINES, PROMPTS, SEEDS, amg, bank, call, has_cfg, remains, size_of
from tiny_pipelines import WIDTH, modular, stable_diffusion_3
from tiny_transformers import flux, flux2

from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.rivals.ren import CrossAttentionRescaling
from amg.sampling import families, guard
from amg.similarity import Match
from amg.thresholds import Always, Constant

VARIANTS = {
    "two a prompt": {"prompt": PROMPTS[:1], "num_images_per_prompt": 3, "negative_prompt": ["ugly"]},
    "negative": {"negative_prompt": ["ugly", "", "bad"]},
    "not square": {"height": 24, "width": 16},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [name for name in (*FLOWS, "pixart") if has_cfg(name)])
def test_unflagged_samples_keep_their_bits_and_flagged_ones_change(name, variant):
    build, options = PIPELINES[name]
    pipe, options = build(), options | VARIANTS[variant]
    if "klein" in name:  # takes negative embeddings only
        options.pop("negative_prompt", None)
    if variant == "not square" and size_of(name) == 32:
        options |= {"height": 64, "width": 32}
    size = (options["height"], options["width"]) if variant == "not square" else size_of(name)
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, amg(Constant(1e9), size)), options), expected)
    got = call(guard(pipe, amg(None, size)), options)
    assert got.isfinite().all() and (got - expected).flatten(1).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", FLOWS)
def test_so_in_bfloat16(name):
    build, options = PIPELINES[name]
    pipe = build(dtype=torch.bfloat16)
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, amg(Constant(1e9), size_of(name))), options), expected)
    got = call(guard(pipe, amg(None, size_of(name))), options)
    assert got.dtype == expected.dtype and got.isfinite().all() and not torch.equal(got, expected)


@pytest.mark.parametrize("name", FLOWS)
def test_similarity_falls_by_g_sim(name):
    build, options = PIPELINES[name]
    image, fell = bank(size_of(name)).pictures[:][0], []

    def similarity(images):
        return Match(3 - (images - image).square().mean((1, 2, 3)), torch.zeros(len(images), dtype=torch.long))

    inner = AntiMemorizationGuidance(similarity, Always(), c3=0.5)

    class Looks(Guidance):
        def __call__(self, step, state):
            eps, state = inner(step, state)
            after = similarity(step.decode(step.with_eps(eps).x0)).value
            fell.append((after < state.similarity).all() or step.alpha_bar[0] < 1e-4)  # there it rests
            return eps, state

    call(guard(build(dtype=torch.float64), Looks()), options)
    assert len(fell) == 4 and all(fell)


@pytest.mark.filterwarnings("error")
def test_that_only_g_sim_can_act_without_cfg_is_said_once():
    pipe = stable_diffusion_3()
    guarded = guard(pipe, amg(), decoder="vae")
    options = {"prompt": PROMPTS, "guidance_scale": 1.0}
    with pytest.warns(UserWarning, match="sampled without CFG: G_spe and G_dup cannot act, only G_sim"):
        call(guarded, options)
    call(guarded, options)
    call(guard(pipe, amg(c3=1.0), decoder="vae"), options)


def test_a_scale_that_changes_on_the_way_is_recovered_from_the_outputs():
    def change(pipe, i, t, tensors):
        pipe._guidance_scale = 3.0
        return tensors

    scales = []
    guarded = guard(stable_diffusion_3(), Guidance(), lambda step, state: scales.append(step.s0))
    call(guarded, {"prompt": PROMPTS, "guidance_scale": 7.5, "callback_on_step_end": change})
    assert scales == [7.5, *[pytest.approx(3.0, abs=1e-4)] * 3]


def agrees(pipe, options, name):
    """Whether a pipeline under guard keeps its bits where nothing is flagged, and changes where everything is."""
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, amg(Constant(1e9), size_of(name))), options), expected)
    got = call(guard(pipe, amg(None, size_of(name))), options)
    assert got.isfinite().all() and not torch.equal(got, expected)
    assert remains(pipe)[:2] == [None, (0, 0)]


@pytest.mark.parametrize("name", [name for name in FLOWS if "without" not in name])
def test_a_callback_may_change_the_latents(name):
    build, options = PIPELINES[name]

    def change(pipe, i, t, tensors):
        return {"latents": tensors["latents"] * 0.9}

    pipe = build()
    plain = call(pipe, options)
    assert not torch.equal(call(pipe, options | {"callback_on_step_end": change}), plain)
    agrees(pipe, options | {"callback_on_step_end": change}, name)


@pytest.mark.parametrize("name", [name for name in FLOWS if "without" not in name])
def test_accelerate_may_bring_the_weights_for_each_call_alone(name):
    from accelerate import cpu_offload

    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    for part in (pipe.transformer, pipe.vae):
        cpu_offload(part, execution_device=torch.device("cpu"))
    torch.testing.assert_close(call(pipe, options), expected)
    agrees(pipe, options, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "flux", "z_image"])
def test_a_compiled_denoiser(name):
    build, options = PIPELINES[name]
    pipe = build()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    agrees(pipe, options, name)


def test_what_guard_does_not_follow_is_refused_by_name():
    pipe = stable_diffusion_3()
    with pytest.raises(ValueError, match="does not follow skip_guidance_layers of StableDiffusion3Pipeline"):
        guard(pipe, Guidance())("a", skip_guidance_layers=[1])
    with pytest.raises(ValueError, match="CrossAttentionRescaling edits the cross-attention of a U-Net"):
        guard(pipe, CrossAttentionRescaling())
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler calls the network more than once a step"):
        guard(pipe, Guidance())
    with pytest.raises(ValueError, match="WanPipeline samples video, and guard compares images"):
        guard(diffusers.WanPipeline.__new__(diffusers.WanPipeline), Guidance())


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
def test_other_solvers_of_flows_see_the_edit_as_the_view_says(kind):
    scheduler = getattr(diffusers, kind)(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe, steps, options = stable_diffusion_3(scheduler=scheduler), [], {"prompt": PROMPTS, "guidance_scale": 3.0}
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, Guidance(), lambda step, state: steps.append(step)), options), expected)
    for step in steps:
        torch.testing.assert_close(step.predict_x0(step.eps), step.x0, rtol=1e-3, atol=1e-3)
    assert not torch.equal(call(guard(pipe, amg()), options), expected)


IMG2IMG = {
    "sd3": (functools.partial(stable_diffusion_3, kind=diffusers.StableDiffusion3Img2ImgPipeline), {}),
    "flux": (functools.partial(flux, kind=diffusers.FluxImg2ImgPipeline), PIPELINES["flux"][1]),
}


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img_begins_at_the_level_of_its_strength(name):
    build, options = IMG2IMG[name]
    pipe, steps = build(), []
    options = options | {"prompt": PROMPTS, "image": [PICTURE] * 3, "strength": 0.5}
    expected = call(pipe, options)
    guarded = guard(pipe, amg(Constant(1e9)), lambda step, state: steps.append(step))
    assert torch.equal(call(guarded, options), expected)
    assert len(steps) == 2 and steps[0].alpha_bar[0] > 0.01
    torch.testing.assert_close(steps[0].predict_x0(steps[0].eps), steps[0].x0, rtol=1e-4, atol=1e-4)
    assert not torch.equal(call(guard(pipe, amg()), options), expected)


def test_flux_2_dev_by_embeddings():
    pipe = flux2(kind=diffusers.Flux2Pipeline)
    options = {"prompt_embeds": torch.randn(3, 16, 3 * WIDTH), "height": 24, "width": 16}
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, amg(Constant(1e9), (24, 16))), options), expected)
    assert not torch.equal(call(guard(pipe, amg(None, (24, 16), c3=5.0)), options), expected)


def test_a_modular_pipeline_by_its_components():
    pipe = modular()

    def sampled(pipe):
        generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        options = {"generator": generator, "num_inference_steps": 4, "output": "latents"}
        return pipe(prompt=PROMPTS, height=16, width=16, **options)

    expected, before, steps = sampled(pipe), remains(pipe), []
    assert torch.equal(sampled(guard(pipe, Guidance(), lambda step, state: steps.append(step))), expected)
    assert len(steps) == 4 and all(step.s0 == 7 and step.eps_cond is not None for step in steps)
    two_terms = AntiMemorizationGuidance(amg().similarity, Always(), c1=2.0, c3=5.0, terms=["spe", "sim"])
    assert not torch.equal(sampled(guard(pipe, two_terms)), expected)
    with pytest.raises(ValueError, match="G_dup embeds captions, and this pipeline has no encode_prompt"):
        sampled(guard(pipe, amg()))
    assert remains(pipe) == before and torch.equal(sampled(pipe), expected)


def test_a_row_can_be_added_as_docs_adding_says(monkeypatch):
    MyPipeline = type("MyPipeline", (diffusers.StableDiffusion3Pipeline,), {})
    pipe = stable_diffusion_3(kind=MyPipeline)
    with pytest.raises(ValueError, match="does not know MyPipeline; it is tested with DDIMPipeline.*docs/adding.md"):
        guard(pipe, Guidance())
    page = (Path(__file__).parents[3] / "docs" / "adding.md").read_text()
    (block,) = re.findall(r"```python\n# amg/sampling/my_families.py\n(.*?)```", page, re.S)
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    exec(block, {})
    assert torch.equal(call(guard(pipe, Guidance()), {"prompt": PROMPTS}), call(pipe, {"prompt": PROMPTS}))
