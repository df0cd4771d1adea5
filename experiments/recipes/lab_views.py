"""Distortions that a copy survives: crop, shift, scale, colour, blur, noise, JPEG (never a mirror: ← is not →)."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.recipes.lab_data import place, turn_hue, uniform


def sometimes(changed: Tensor, images: Tensor, chance: float) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1) < chance, changed, images)


def colour(images: Tensor) -> Tensor:
    """Brightness, contrast and saturation by ±25 %, hue by up to 12°."""
    n = len(images)
    brightness, contrast, saturation = (uniform(n, 0.75, 1.25).view(-1, 1, 1, 1) for _ in "123")
    light = ((images + 1) * brightness - 1).clamp(-1, 1)
    mean = light.mean((1, 2, 3), keepdim=True)
    light = (mean + contrast * (light - mean)).clamp(-1, 1)
    grey = light.mean(1, keepdim=True)
    return turn_hue(grey + saturation * (light - grey), uniform(n, -math.pi / 15, math.pi / 15))


def blur(images: Tensor) -> Tensor:
    """A Gaussian of one width per picture, 0.4 to 1.2 pixels, over 5×5."""
    offsets = torch.arange(-2.0, 3.0)
    kernel = torch.exp(-0.5 * (offsets / uniform(len(images), 0.4, 1.2)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # one row per picture and channel
    rows = F.pad(images, (2, 2, 2, 2), mode="replicate").flatten(0, 1)[None]
    rows = F.conv2d(rows, kernel[:, None, None, :], groups=len(kernel))
    return F.conv2d(rows, kernel[:, None, :, None], groups=len(kernel)).view_as(images)


def noise(images: Tensor) -> Tensor:
    return images + torch.randn_like(images) * uniform(len(images), 0.02, 0.2).view(-1, 1, 1, 1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """One picture (3, H, W) through Pillow's JPEG encoder and back."""
    pixels = image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1).float() / 127.5 - 1


def distort(images: Tensor) -> Tensor:
    """A distorted view of each picture (B, 3, 32, 32); zoom above 1 crops."""
    n = len(images)
    placed = place(images, uniform(n, 0.8, 1.4), uniform(2 * n, -0.2, 0.2).view(2, n), torch.zeros(n, dtype=torch.bool))
    views = sometimes(placed, images, 0.8)
    views = sometimes(colour(views), views, 0.7)
    views = sometimes(blur(views), views, 0.4)
    views = sometimes(noise(views), views, 0.5).clamp(-1, 1)
    chosen = torch.rand(n) < 0.3
    if chosen.any():
        views[chosen] = torch.stack([jpeg(view, int(torch.randint(30, 90, ()))) for view in views[chosen]])
    return views
