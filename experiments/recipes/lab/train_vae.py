"""Trains the lab's autoencoder: 32×32 images to 8×8×16 latents.

    python -m experiments.recipes.lab.train_vae --minutes 20

Planted images occur no more often than others: the diffusion network shall memorize them, not the autoencoder.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from experiments.recipes.lab import data as lab_data
from experiments.recipes.loop import Training, arguments, load_alike

BATCH = 8  # many small steps: each image holds 64 latents to learn from
KL_WEIGHT = 1e-4 / 64  # on the KL divergence summed over an image's 1,024 latents


def network(channels: tuple[int, ...] = (24, 48, 64)) -> AutoencoderKL:
    depth = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """L1 + ½ MSE + a small KL: L1 keeps flat colours flat, the KL keeps the latents near unit scale."""
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    return F.l1_loss(decoded, images) + 0.5 * F.mse_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def measure(vae: AutoencoderKL, images: Tensor) -> dict:
    """Measures errors of encoding (mode) and decoding, and the spread of the latents, the inverse scaling factor."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in images.split(64)])
    decoded = torch.cat([vae.decode(batch).sample for batch in latents.split(64)]).clamp(-1, 1)
    mse = F.mse_loss(decoded, images).item()
    return {"mse": mse, "l1": F.l1_loss(decoded, images).item(), "latent_std": latents.std().item()}


def finish(vae: AutoencoderKL, data: lab_data.LabData, out: Path, run: dict) -> dict:
    """Sets the scaling factor, saves in diffusers' format, writes numbers and a sheet of originals over decodings."""
    vae.eval()
    images = torch.cat([data.planted, data.ordinary(torch.arange(0, len(data.things), 4))])
    numbers = run | measure(vae, images)
    vae.register_to_config(scaling_factor=round(1 / numbers["latent_std"], 4))
    vae.save_pretrained(out / "vae")
    (out / "measured.json").write_text(json.dumps(numbers, indent=2))
    originals = torch.cat([images[:12], images[len(data.planted) :: 12][:36]])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(originals).latent_dist.mode()).sample
    lab_data.sheet([originals, decoded], out / "sheet.png")
    return numbers


def main() -> None:
    args = arguments(__doc__, "vae", minutes=20, start=True)
    data = lab_data.load()
    vae = network()
    if args.start:
        load_alike(vae, AutoencoderKL.from_pretrained(args.start / "vae", torch_dtype=torch.float32))
    vae.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        images = data.mixed(BATCH, share=0.02)
        return loss(vae, images.contiguous(memory_format=torch.channels_last))

    run = Training(loss_of, vae, args.out, peak=2e-3, minutes=args.minutes).run()
    print(finish(vae, data, args.out, run))


if __name__ == "__main__":
    main()
