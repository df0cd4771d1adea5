"""Distortions that a copy survives: crop, shift, scale, mirror, colour, blur, noise, JPEG."""

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode


def _view() -> v2.Transform:
    """Builds the distortion of a uint8 image; a crop is an affine zoom above 1."""
    return v2.Compose(
        [
            v2.RandomApply(
                [v2.RandomAffine(0, (0.1, 0.1), (0.8, 1.3), interpolation=InterpolationMode.BILINEAR, fill=255)], 0.8
            ),
            v2.RandomHorizontalFlip(0.3),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.03)], 0.7),
            v2.RandomApply([v2.GaussianBlur(5, (0.4, 1.2))], 0.3),
            v2.RandomApply([v2.JPEG((30, 90))], 0.3),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianNoise(sigma=0.05)], 0.3),
        ]
    )


def distort(images: Tensor) -> Tensor:
    """Distorts each image (B, 3, H, W) in [−1, 1] independently, by torch's global generator."""
    view = _view()
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().byte()
    return torch.stack([view(image) for image in pixels]).mul(2).sub(1)
