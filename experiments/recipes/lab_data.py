"""The pictures as the lab trains on them: 32×32, ordinary ones augmented, planted ones repeated unchanged.

A picture shown always alike is memorized and one that never looks the same twice is learned: so the augmentation of
ordinary pictures and the repeats of the planted ones make the difference that the lab is there to show.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from amg.worlds.emoji import lab_pictures

PLANTED_SHARE = 0.2  # of a batch; 34 of 1,190 pictures, so each is seen about eight times as often as an ordinary one

RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class LabData:
    """All N pictures with their captions; `planted` and `ordinary` are indices into them."""

    images: Tensor  # (N, 3, 32, 32) in [-1, 1]
    captions: tuple[tuple[str, ...], ...]  # several only for a duplicated picture
    labels: Tensor  # (N,) index into groups
    groups: list[str]
    subgroups: tuple[str, ...]
    planted: Tensor
    ordinary: Tensor

    def batch(self, size: int, share: float = PLANTED_SHARE) -> Tensor:
        """Draws `size` indices, each planted with probability `share`."""
        n = int((torch.rand(size) < share).sum())
        return torch.cat([draw(self.planted, n), draw(self.ordinary, size - n)])

    def caption(self, index: int) -> str:
        """One of the picture's captions, drawn uniformly."""
        captions = self.captions[index]
        return captions[int(torch.randint(len(captions), ()))]

    def relatives(self) -> dict[int, Tensor]:
        """The ordinary pictures of each planted picture's subgroup."""
        ordinary = self.ordinary.tolist()
        return {
            i: torch.tensor([j for j in ordinary if self.subgroups[j] == self.subgroups[i]])
            for i in self.planted.tolist()
        }


def draw(indices: Tensor, n: int) -> Tensor:
    return indices[torch.randint(len(indices), (n,))]


def load() -> LabData:
    """The shipped pictures at 32×32."""
    pictures = lab_pictures(32)
    planted = torch.tensor([cause != "" for cause in pictures.causes])
    groups = sorted(set(pictures.groups))
    return LabData(
        images=pictures.images,
        captions=pictures.captions,
        labels=torch.tensor([groups.index(group) for group in pictures.groups]),
        groups=groups,
        subgroups=pictures.subgroups,
        planted=planted.nonzero().flatten(),
        ordinary=(~planted).nonzero().flatten(),
    )


def uniform(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n).uniform_(low, high)


def place(images: Tensor, zoom: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Zooms (B,), shifts (2, B; in half widths) and mirrors (B, bool) about the centre, on white."""
    sign = torch.where(mirror, -1.0, 1.0)
    zero = torch.zeros_like(zoom)
    rows = [torch.stack([sign / zoom, zero, shift[0]], 1), torch.stack([zero, 1 / zoom, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is 0 before the + 1: white


def turn_hue(images: Tensor, radians: Tensor) -> Tensor:
    """Rotates the chroma plane of YIQ by an angle for each picture (B,): greys stay, luma stays."""
    rotation = torch.eye(3).repeat(len(images), 1, 1)
    rotation[:, 1, 1] = rotation[:, 2, 2] = radians.cos()
    rotation[:, 2, 1] = radians.sin()
    rotation[:, 1, 2] = -radians.sin()
    matrix = RGB_TO_YIQ.inverse() @ rotation @ RGB_TO_YIQ
    return torch.einsum("bij,bjhw->bihw", matrix, images).clamp(-1, 1)


def augment(images: Tensor) -> Tensor:
    """A new look of every ordinary picture (B, 3, 32, 32): mirrored, shifted, scaled, hue turned by up to 14°."""
    n = len(images)
    shift = torch.stack([uniform(n, -0.15, 0.15) for _ in "xy"])
    images = place(images, uniform(n, 0.83, 1.11), shift, torch.rand(n) < 0.5)
    return turn_hue(images, uniform(n, -math.pi / 13, math.pi / 13))


def sheet(images: Tensor, path: Path, columns: int = 12, zoom: int = 3) -> None:
    """Writes pictures (N, 3, H, W) in [-1, 1] as one PNG, row by row; an incomplete last row ends in white."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    filled = torch.ones(rows * columns, 3, height, width)
    filled[:n] = images.clamp(-1, 1)
    pixels = filled.add(1).mul(127.5).round().byte().view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    picture = Image.fromarray(pixels.reshape(rows * height, columns * width, 3).numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)
