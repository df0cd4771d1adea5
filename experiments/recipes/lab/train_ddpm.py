"""Trains `lab_ddpm`: a pixel-space, class-conditional DDPM at 32×32 that diffusers loads.

    python -m experiments.recipes.lab.train_ddpm --minutes 150

The classes are the groups of things; the label after the last of them means none, so that one set of weights serves
both the unconditional and the class-conditional case. Without captions one cause of memorization is left, duplicated
images: they alone are planted. Every drawing is large, so that a small network learns its outline sooner.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from amg import sample
from amg.models.ddpm import DDPM
from amg.worlds.lab import LabDDPM
from experiments.recipes import loop
from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab.train_sd import scheduler, v_error

RESOLUTION = 32
BATCH = 16  # many small steps
DROPOUT = 0.5  # of labels: unconditional samples matter as much as conditional ones
PEAK = 8e-4  # learning rate after warm-up
PLANTED_SHARE = 0.4  # of a batch


def network(classes: int, channels: tuple[int, ...] = (32, 64, 128)) -> UNet2DModel:
    """Builds a U-Net of `classes` + 1 labels with attention at the smallest resolution."""
    plain = len(channels) - 1
    return UNet2DModel(
        sample_size=RESOLUTION,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=classes + 1,
    )


def batches(data: lab_data.LabData, size: int = BATCH) -> Callable[[], tuple[Tensor, Tensor]]:
    """Returns a function that samples images (B, 3, 32, 32) and labels (B,), half of them dropped."""
    labels = torch.tensor([data.classes.index(group) for group in data.groups])
    planted_labels = torch.tensor([data.classes.index(group) for group in data.planted_groups])

    def batch() -> tuple[Tensor, Tensor]:
        planted = torch.randint(len(data.planted), (int((torch.rand(size) < PLANTED_SHARE).sum()),))
        ordinary = data.random(size - len(planted))
        images = torch.cat([data.planted[planted], data.ordinary(ordinary)])
        labels_of_images = torch.cat([planted_labels[planted], labels[ordinary]])
        return images, labels_of_images.masked_fill(torch.rand(size) < DROPOUT, len(data.classes))

    return batch


def loss(net: UNet2DModel, alphas_cumprod: Tensor, x0: Tensor, labels: Tensor) -> Tensor:
    return v_error(lambda x_t, timestep: net(x_t, timestep, labels).sample, alphas_cumprod, x0)


def look(folder: Path, data: lab_data.LabData, step: int, n: int = 48) -> dict:
    """Samples without a label; writes a sheet and returns the share of copies of planted images."""
    images = sample(DDPM(folder / "pipeline", null_label=len(data.classes)), range(n), steps=50)
    lab_data.sheet([images], folder / f"sheet_{step:06d}.png")
    return {"copies": lab_data.copies_of(images, data.planted).float().mean().item()}


def main() -> None:
    args = loop.arguments(__doc__, "ddpm", minutes=150, start=True)
    data = lab_data.load(RESOLUTION, **LabDDPM.law)
    net = network(len(data.classes))
    if args.start:
        loop.load_alike(net, UNet2DModel.from_pretrained(args.start / "unet", torch_dtype=torch.float32))
    ema = loop.average(net)
    net.to(memory_format=torch.channels_last)
    alphas_cumprod, batch = scheduler().alphas_cumprod, batches(data)

    def on_look(step: int) -> dict:
        DDPMPipeline(ema.module, scheduler()).save_pretrained(args.out / "pipeline")
        return look(args.out, data, step)

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        with loop.bf16():
            return loss(net, alphas_cumprod, images, labels)

    print(loop.Training(loss_of, net, args.out, PEAK, args.minutes, ema=ema, on_look=on_look).run())


if __name__ == "__main__":
    main()
