"""Gradients through weights that diffusers keeps in unusual ways: inference mode, fp8 storage, half precision."""

import pytest
import torch
from guarded import PIPELINES, PROMPTS, TRANSFORMERS, amg, bank, call, has_cfg, remains, size_of
from tiny_pipelines import sdxl, stable_diffusion

from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.rivals.released_sd import ReleasedSD
from amg.models.latents import LatentDecoder
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.similarity import PCASimilarity, TwoStage
from amg.similarity.descriptor import DescriptorSimilarity
from amg.thresholds import Always, Constant

FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.bfloat16}
STRENGTHS = {"c1": 2.0, "c2": 3.0, "c3": 5.0}
LOAD = "was loaded under torch.inference_mode, where no gradient can be taken: load it under torch.no_grad"


def embedding() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))


class Holder:
    """An embedding that is a function and keeps its module to itself."""

    def __init__(self):
        self.module = embedding()

    def __call__(self, images):
        return self.module(images)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ("ddpm", "ddim", *TRANSFORMERS)])
def test_a_pipeline_made_in_inference_mode_is_refused_before_the_first_step_where_a_gradient_passes_it(name, inside):
    build, options = PIPELINES[name]
    with torch.inference_mode():
        pipe = build()
    before, steps = remains(pipe), []
    with torch.inference_mode(inside), pytest.raises(ValueError, match=f"AutoencoderKL {LOAD}"):
        call(guard(pipe, amg(**STRENGTHS), lambda *seen: steps.append(seen)), options)
    assert not steps and remains(pipe) == before


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_made_in_inference_mode_serves_where_no_gradient_passes_it(name):
    build, options = PIPELINES[name]
    with torch.inference_mode():
        pipe = build()
    expected, before = call(pipe, options), remains(pipe)
    assert torch.equal(call(guard(pipe, amg(Constant(1e9), size_of(name), c1=1.0, c2=1.0)), options), expected)
    assert not has_cfg(name) or not torch.equal(
        call(guard(pipe, amg(None, size_of(name), c1=1.0, c2=1.0)), options), expected
    )
    assert remains(pipe) == before


def test_networks_and_released_guidance_are_looked_at_too():
    with torch.inference_mode():
        pipe = stable_diffusion()
    pipe.vae = stable_diffusion().vae
    call(guard(pipe, amg(**STRENGTHS)), {"prompt": PROMPTS})  # ε is held fixed
    with pytest.raises(ValueError, match=f"UNet2DConditionModel {LOAD}"):
        call(guard(pipe, amg(**STRENGTHS, gradient="through_unet")), {"prompt": PROMPTS})
    with torch.inference_mode():
        pipe.vae = stable_diffusion().vae
    with pytest.raises(ValueError, match=f"AutoencoderKL {LOAD}"):
        call(guard(pipe, ReleasedSD(PCASimilarity(bank()))), {"prompt": PROMPTS})


@pytest.mark.parametrize("embed", [embedding, Holder, lambda: Holder().__call__], ids=["module", "holder", "method"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_descriptor_made_in_inference_mode_is_refused_before_the_first_step(embed, stages):
    with torch.inference_mode():
        made = embed()
    similarity = DescriptorSimilarity(pictures := bank(), made)
    if stages == 2:
        similarity = TwoStage(PCASimilarity(pictures), similarity, candidates=3)
    pipe, guidance = stable_diffusion(), AntiMemorizationGuidance(similarity, Always(), c3=5.0)
    with pytest.raises(ValueError, match=f"Sequential {LOAD}"):
        call(guard(pipe, guidance), {"prompt": PROMPTS})
    with pytest.raises(ValueError, match=f"Sequential {LOAD}"):
        sample(StableDiffusion(pipe), [1], guidance=guidance, prompts=["a"], s0=3.0, steps=2)


@pytest.mark.parametrize("gradient", ["fixed_eps", "through_unet"])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_call_inside_inference_mode_is_guided_as_outside(name, gradient):
    build, options = PIPELINES[name]
    guidance = amg(None, size_of(name), **STRENGTHS, gradient=gradient)
    pipe = build()
    expected = call(guard(pipe, guidance), options)
    with torch.inference_mode():
        got = call(guard(pipe, guidance), options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [("vae",), ("unet",), ("vae", "unet")])
@pytest.mark.parametrize("gradient", ["fixed_eps", "through_unet"])
@pytest.mark.parametrize("build", [stable_diffusion, sdxl])
def test_fp8_storage_takes_the_gradient_of_weights_rounded_once(build, gradient, parts):
    """The same pipeline with its weights rounded to fp8 and stored in the type of computation."""
    cast, plain = build(dtype=torch.bfloat16), build(dtype=torch.bfloat16)
    for part in parts:
        getattr(cast, part).enable_layerwise_casting(**FP8)
        getattr(plain, part).load_state_dict(getattr(cast, part).state_dict())
    guidance = amg(**STRENGTHS, gradient=gradient)
    states = [], []
    got, expected = (
        call(
            guard(pipe, guidance, lambda step, state, states=states: states.append(state)), {"prompt": PROMPTS}, steps=2
        )
        for pipe, states in zip((cast, plain), states, strict=True)
    )
    assert got.isfinite().all() and not any(state.dropped.any() for state in states[0])
    assert (states[0][0].sim > 0).all()
    torch.testing.assert_close(states[0][0].sim, states[1][0].sim, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    unflagged = call(guard(cast, amg(Constant(1e9))), {"prompt": PROMPTS}, steps=2)
    assert torch.equal(unflagged, call(cast, {"prompt": PROMPTS}, steps=2))
    assert {w.dtype for w in getattr(cast, parts[0]).parameters()} == {torch.float8_e4m3fn, torch.bfloat16}


def test_a_half_precision_vae_that_overflows_unannounced_is_decoded_in_float32():
    vae = stable_diffusion().vae.half()
    vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)  # group norms after it give the same image
        vae.decoder.conv_in.bias.mul_(1e5)
        state, latents, decoder = torch.get_rng_state(), torch.ones(2, 4, 8, 8).half() * 9, LatentDecoder(vae)
        assert not vae.decode(latents / vae.config.scaling_factor).sample.isfinite().all()
        images = decoder(latents)
        latents[0] = torch.nan
        assert decoder(latents)[1].isfinite().all() and torch.equal(torch.get_rng_state(), state)
    assert images.isfinite().all() and images.dtype == torch.float32 and vae.dtype == torch.float16


def test_a_plain_guidance_needs_no_gradients():
    with torch.inference_mode():
        pipe = stable_diffusion()
        assert torch.equal(call(guard(pipe, Guidance()), {"prompt": PROMPTS}), call(pipe, {"prompt": PROMPTS}))
