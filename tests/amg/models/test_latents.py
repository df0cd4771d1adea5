"""Small decoders: what they are fed, what they refuse, and what a guard makes of them."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from guarded import amg, bank
from tiny_pipelines import seeded, stable_diffusion, unconditional, vae

from amg import guard
from amg.guidance import AntiMemorizationGuidance
from amg.models import latents as module
from amg.models.latents import EarlyLinear, LatentDecoder, LinearDecoder, TinyDecoder, decoder_at, encode_latents
from amg.sampling.decoders import decoder_of
from amg.similarity import NormalizedL2
from amg.thresholds import Always
from amg.worlds.drawings import training_images
from amg.worlds.lab import lab_sd


@seeded
def tiny(stages: int = 2, channels: int = 4, **options) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * stages,
        decoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages,
        num_decoder_blocks=(1,) * stages,
        latent_channels=channels,
        **options,
    ).eval()


LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "scale", [{"scaling_factor": 0.18215}, {"scaling_factor": 0.3611, "shift_factor": 0.1159}], ids=["sd", "flux"]
)
def test_a_tiny_decoder_takes_latents_at_the_denoisers_scale_whatever_the_vaes(scale):
    small = tiny()
    found = TinyDecoder(small, vae(**scale))(LATENTS)
    torch.testing.assert_close(found, small.decode(LATENTS).sample)
    assert found.shape == LatentDecoder(vae(**scale))(LATENTS).shape


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 16}, "has 16 latent channels, and the pipeline's AutoencoderKL has 4"),
        ({"stages": 3}, "decodes a latent to 4×4 pixels, and the pipeline's AutoencoderKL decodes a latent to 2×2"),
        ({"scaling_factor": 0.5}, "scaling_factor 0.5 and shift_factor 0, and the scheduler's have 1 and 0"),
    ],
)
def test_a_tiny_decoder_of_another_family_is_refused_by_both_sides(options, message):
    with pytest.raises(ValueError, match=message):
        guard(stable_diffusion(), amg(), decoder=tiny(**options))


def test_slices_change_neither_images_nor_gradients(monkeypatch):
    decoder = TinyDecoder(tiny(), vae())

    def gradient():
        z = LATENTS.clone().requires_grad_()
        return torch.autograd.grad(decoder(z).square().sum(), z)[0], decoder(LATENTS)

    whole = gradient()
    monkeypatch.setattr(module, "SLICE_PIXELS", 16 * 16)
    torch.testing.assert_close(gradient(), whole)


def test_the_linear_map_is_the_least_squares_one_and_shows_the_lab_its_images():
    pipe, images = lab_sd(), training_images(32).bank().pictures[:]
    decoder, z = LinearDecoder(pipe.vae, images), encode_latents(pipe.vae, images[:256])
    decoded = decoder(z)
    assert decoded.shape == images[:256].shape
    correlation = torch.corrcoef(torch.stack([F.avg_pool2d(x, 4).flatten() for x in (decoded, images[:256])]))[0, 1]
    assert correlation > 0.9
    few = LinearDecoder(pipe.vae, images[:16])
    few(z[:1])
    rows = F.pad(encode_latents(pipe.vae, images[:16]).movedim(1, 3).flatten(0, 2), (0, 1), value=1.0).double()
    residual = F.avg_pool2d(images[:16], 4).movedim(1, 3).flatten(0, 2).double() - rows @ few._weights
    assert (rows.T @ residual).abs().max() < 1e-3 * len(rows)  # normal equations


def test_a_linear_decoder_saturates_and_keeps_a_gradient():
    """x̂0 of random weights at ᾱ = 4e-5 is huge: a guide overflowed."""
    decoder = decoder_of(stable_diffusion(), "linear", bank())
    decoder(LATENTS)
    slopes, offset = decoder._weights[:-1].float(), decoder._weights[-1].float().view(3, 1, 1)
    latents = (LATENTS * torch.tensor([1e-3, 1e3, 1e30]).view(3, 1, 1, 1)).requires_grad_()
    images = decoder(latents)
    assert images.abs().max() <= 1.5 and images[1].abs().max() > 1.4
    colours = F.interpolate(
        torch.einsum("bchw,cd->bdhw", latents[:1], slopes) + offset, scale_factor=2, mode="bilinear"
    )
    torch.testing.assert_close(images[:1], colours)  # inside the range it is the map itself
    (gradient,) = torch.autograd.grad(images[:2].square().sum(), latents)
    assert gradient.isfinite().all() and (gradient[:2].abs().amax((1, 2, 3)) > 1e-9).all()


def test_a_models_own_folder_brings_its_tiny_autoencoder(tmp_path):
    stable_diffusion().save_pretrained(tmp_path)
    small = tiny()
    small.save_pretrained(tmp_path / "tiny")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    for kind in ("tiny", "auto"):
        torch.testing.assert_close(decoder_of(pipe, kind)(LATENTS), small.decode(LATENTS).sample)


def test_auto_says_what_it_takes_where_there_is_no_tiny_one():
    pipe = stable_diffusion()
    with pytest.warns(UserWarning, match="decodes a latent to 8×8 pixels.*by a linear map early and by the VAE late"):
        decoder = decoder_of(pipe, "auto", bank())
    assert isinstance(decoder, EarlyLinear)
    early, late = (decoder_at(decoder, torch.tensor([alpha_bar])) for alpha_bar in (0.1, 0.9))
    torch.testing.assert_close(late(LATENTS), pipe.vae.decode(LATENTS / pipe.vae.config.scaling_factor).sample)
    assert early(LATENTS).shape == (3, 3, 16, 16) and not torch.allclose(early(LATENTS), late(LATENTS))
    with pytest.warns(UserWarning, match="by the VAE, the price of a step"):
        assert isinstance(decoder_of(pipe, "auto"), LatentDecoder)


def test_decoders_that_cannot_be_had_are_refused_in_one_line():
    pipe = stable_diffusion()
    with pytest.raises(FileNotFoundError, match="take decoder=linear, which needs no file, or decoder=vae"):
        decoder_of(pipe, "tiny")
    pipe.vae.register_to_config(block_out_channels=(8,) * 4)  # as the published ones, which are not on disk here
    with pytest.raises(FileNotFoundError, match="madebyollin/taesd is not on disk.*decoder=linear"):
        decoder_of(pipe, "tiny")
    with pytest.raises(ValueError, match="has no bank of them"):
        decoder_of(pipe, "linear")
    with pytest.raises(ValueError, match="decoder: unknown 'small'; choose auto, vae, tiny or linear"):
        guard(pipe, amg(), decoder="small")
    with pytest.raises(ValueError, match="DDPMPipeline samples images"):
        decoder_of(unconditional(DDPMPipeline, DDPMScheduler()), "tiny")


@pytest.mark.parametrize("kind", ["tiny", "linear"])
def test_a_guidance_sees_the_small_decoders_images_and_the_user_the_vaes(kind):
    pipe, seen = stable_diffusion(), []
    guidance = AntiMemorizationGuidance(NormalizedL2(bank(), k=3), Always(), c3=5.0, normalize=True)
    decoder = decoder_of(pipe, tiny() if kind == "tiny" else kind, bank())
    guarded = guard(pipe, guidance, lambda step, state: seen.append((step, state)), decoder=decoder)
    options = {"prompt": ["a cat", "two dogs"], "num_inference_steps": 3}

    def draw(pipe, output):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return pipe(**options, generator=generators, output_type=output).images

    x0 = draw(guarded, "latent")
    for step, state in seen:
        torch.testing.assert_close(guidance.similarity(decoder(step.x0)).value, state.similarity)
        assert state.flagged.all() and (state.sim > 0).all()
    full = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(draw(guarded, "pt"), (full / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(x0, draw(pipe, "latent"))
