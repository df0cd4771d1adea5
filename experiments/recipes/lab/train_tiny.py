"""Distils the lab's tiny autoencoder, `AutoencoderTiny`, from its autoencoder.

    python -m experiments.recipes.lab.train_tiny --minutes 14

The decoder learns to reproduce the large decoder's images, also of latents between images: a predicted image early in a
trajectory is a mean of many.
"""

import json

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab.train_sd import encode
from experiments.recipes.loop import Training, arguments, bf16

BATCH = 32


def network(width: int = 32) -> AutoencoderTiny:
    """Two of its three stages halve the resolution, as the large autoencoder's do; latents are of unit scale."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=16,
        latent_magnitude=3,
        scaling_factor=1.0,
    )


@torch.no_grad()
def targets(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decodes latents of unit scale by the large decoder."""
    return vae.decode(latents / vae.config.scaling_factor).sample


def blends(latents: Tensor) -> Tensor:
    """Moves half of the latents towards others of the batch and towards zero, as predicted images lie."""
    n = len(latents)
    weight, scale = torch.rand(n, 1, 1, 1), torch.rand(n, 1, 1, 1)
    blended = (weight * latents + (1 - weight) * latents[torch.randperm(n)]) * scale
    return torch.where(torch.rand(n, 1, 1, 1) < 0.5, latents, blended)


def loss(tiny: AutoencoderTiny, vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Compares decoded images with the large decoder's, and encoded latents with the large encoder's."""
    exact = encode(vae, images)
    latents = blends(exact)
    decoded = tiny.decode(latents).sample
    target = targets(vae, latents).clamp(-1, 1)
    image_error = F.l1_loss(decoded, target) + F.mse_loss(decoded, target)
    return image_error + 0.1 * F.mse_loss(tiny.encode(images).latents, exact)


@torch.no_grad()
def measure(tiny: AutoencoderTiny, vae: AutoencoderKL, images: Tensor) -> dict:
    """Measures the root mean squared difference from the large decoder, on latents of images and between images."""
    latents = encode(vae, images)
    between = blends(latents)

    def rmse(z: Tensor) -> float:
        return F.mse_loss(tiny.decode(z).sample.clamp(-1, 1), targets(vae, z).clamp(-1, 1)).sqrt().item()

    return {"rmse": rmse(latents), "rmse_between": rmse(between)}


def main() -> None:
    args = arguments(__doc__, "tiny", minutes=14, vae=True)
    data = lab_data.load()
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval().requires_grad_(False)
    tiny = network().to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        images = data.mixed(BATCH, share=0.1)
        with bf16():
            return loss(tiny, vae, images)

    run = Training(loss_of, tiny, args.out, peak=2e-3, minutes=args.minutes).run()
    tiny.eval()
    numbers = run | measure(tiny, vae, data.ordinary(torch.arange(0, len(data.things), 4)))
    tiny.save_pretrained(args.out / "tiny")
    (args.out / "measured.json").write_text(json.dumps(numbers, indent=2))
    print(numbers)


if __name__ == "__main__":
    main()
