"""Stable Diffusion against the pipelines of diffusers, on tiny random models."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import CONTROLNET, sdxl, stable_diffusion

from amg.models.latents import LatentDecoder
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import sample

PROMPTS = ["a cat", "two dogs", "sea"]


def latents_of(pipe, prompts=PROMPTS, seeds=(4, 5, 6), **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompts, generator=generators, num_inference_steps=4, output_type="latent", **options).images


@pytest.mark.parametrize(
    "build", [stable_diffusion, lambda: stable_diffusion(prediction_type="v_prediction"), sdxl], ids=["sd", "v", "sdxl"]
)
@pytest.mark.parametrize("s0", [1.0, 7.5])
def test_unguided_latents_equal_the_pipelines_own_bit_by_bit(build, s0):
    pipe = build()
    expected = latents_of(pipe, guidance_scale=s0, eta=0.5)
    got = sample(StableDiffusion(pipe), [4, 5, 6], prompts=PROMPTS, s0=s0, steps=4, eta=0.5)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("build", [stable_diffusion, sdxl])
def test_without_a_prompt_it_draws_by_the_null_condition_alone(build):
    model = StableDiffusion(build())
    free = sample(model, [4, 5], steps=4)
    assert torch.equal(free, sample(model, [4, 5], model.encode([None, None]), steps=4))


@pytest.mark.parametrize("build", [stable_diffusion, sdxl])
def test_decoded_pictures_equal_the_pipelines_own(build):
    pipe = build(dtype=torch.float64)
    latents = latents_of(pipe)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]
    expected = pipe(PROMPTS, generator=generators, num_inference_steps=4, output_type="pt").images
    got = (StableDiffusion(pipe).decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_latents_are_unscaled_by_mean_std_and_shift_as_the_vae_says():
    vae = stable_diffusion().vae
    latents = torch.randn(2, 4, 8, 8)
    vae.register_to_config(shift_factor=0.3, scaling_factor=2.0)
    with torch.no_grad():
        torch.testing.assert_close(LatentDecoder(vae)(latents), vae.decode(latents / 2 + 0.3).sample)
        vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
        mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1), torch.arange(1.0, 5).view(1, 4, 1, 1)
        torch.testing.assert_close(LatentDecoder(vae)(latents), vae.decode(latents * std / 2 + mean).sample)


def test_sliced_and_recomputed_decoding_has_the_plain_gradient(monkeypatch):
    vae = stable_diffusion(dtype=torch.float64).vae
    latents = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    plain = vae.decode(latents / vae.config.scaling_factor).sample
    (expected,) = torch.autograd.grad((plain * weights).sum(), latents)
    monkeypatch.setattr("amg.models.latents.SLICE_PIXELS", 16 * 16)  # one picture a slice
    calls, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda part, **options: calls.append(len(part)) or decode(part, **options))
    images = LatentDecoder(vae)(latents)
    (got,) = torch.autograd.grad((images * weights).sum(), latents)
    assert calls == [1] * 6  # three forward, three again backward
    torch.testing.assert_close(got, expected)


def test_an_overflowing_half_precision_vae_is_decoded_in_float32_and_stays_half():
    vae = stable_diffusion().vae.half()
    exact = stable_diffusion().vae
    exact.load_state_dict({name: value.float() for name, value in vae.state_dict().items()})
    latents = torch.randn(2, 4, 8, 8).half()
    with torch.no_grad():
        expected = exact.decode(latents.float() / vae.config.scaling_factor).sample
        got = LatentDecoder(vae)(latents)
    assert got.dtype == torch.float32 and vae.dtype == torch.float16
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)  # the latents are unscaled in half precision


def test_a_long_prompt_is_said_to_be_cut_and_where():
    model = StableDiffusion(stable_diffusion())
    with pytest.warns(UserWarning, match="prompt 1 has 20 tokens of 16: cut off before 'o p q r'"):
        model.encode(["a", "a b c d e f g h i j k l m n o p q r"])


@pytest.mark.parametrize("prompts, message", [([""], "prompt 0 is empty"), (["a", "  "], "prompt 1"), ([3], "labels")])
def test_prompts_that_are_none_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion(stable_diffusion()).encode(prompts)


def test_null_and_prompted_rows_may_be_mixed():
    model = StableDiffusion(sdxl(torch.float64))
    mixed = model.encode(["a cat", None])
    for name, value in model.encode([None]).items():
        torch.testing.assert_close(mixed[name][1:], value)
    for name, value in model.encode(["a cat"]).items():
        torch.testing.assert_close(mixed[name][:1], value)


@pytest.mark.parametrize("build", [stable_diffusion, sdxl])
def test_a_saved_folder_is_loaded_without_a_network(build, tmp_path):
    pipe = build(dtype=torch.float64)
    pipe.save_pretrained(tmp_path)
    model = StableDiffusion(str(tmp_path), dtype=torch.float64)
    assert isinstance(model.scheduler, DDIMScheduler)
    got = sample(model, [4, 5, 6], prompts=PROMPTS, s0=7.5, steps=4)
    torch.testing.assert_close(got, latents_of(pipe, guidance_scale=7.5), rtol=0, atol=1e-6)


def test_a_model_that_is_nowhere_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"model .*none.*set model.source.*ClosedForm\(\)") as error:
        StableDiffusion(str(tmp_path / "none"))
    assert "\n" not in str(error.value)


def test_other_pipelines_are_refused_by_name():
    with pytest.raises(ValueError, match="StableDiffusionControlNetPipeline"):
        StableDiffusion(stable_diffusion(CONTROLNET))


def test_size_sets_the_latents_side():
    assert StableDiffusion(stable_diffusion(), size=32).shape == (4, 16, 16)
    with pytest.raises(ValueError, match="multiple of 2"):
        StableDiffusion(stable_diffusion(), size=33)


def test_a_name_that_is_not_on_disk_fails_soon_where_the_hub_is_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(FileNotFoundError, match="'a/b' could not be loaded .not on disk, and the hub is out of reach"):
        StableDiffusion("a/b")
