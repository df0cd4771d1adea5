"""Correlation of pixels, regardless of tint and contrast. It needs no training and no download."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.base import require_shape
from amg.similarity.descriptor import DescriptorSimilarity
from amg.tensors import floats

MIN_VARIANCE = 1e-3
"""Added to an image's variance: an image of one colour stays near 0 instead of amplified noise."""
ROWS = 1024
"""Training images that are standardized at once."""


class PixelCorrelation(DescriptorSimilarity):
    """σ: cosine of standardized images about the mean standardized training image (zero-mean normalized correlation).

    A paler or tinted copy is as similar as the copy itself, so that guidance cannot escape into one: it leaves for
    another drawing.

    Args:
        bank: training images of one size.
        copy, strict: an image is memorized if σ > copy. Of novel samples of the drawn world's law 1 % and 6 % lie
            beyond the defaults; copies lie near 1.
        norm_gradient, index: as `DescriptorSimilarity`'s.
    """

    compares_pixels = True
    """Images must have the size of the bank's."""

    def __init__(
        self,
        bank: TrainingBank,
        copy: float = 0.977,
        strict: float = 0.94,
        norm_gradient: bool = False,
        index: str = "exact",
    ):
        shape = bank.shape
        parts = [standardized(floats(part), shape[0]).double().sum(0) for part in bank.pixels().split(ROWS)]
        mean = torch.stack(parts).sum(0) / len(bank)

        def embed(images: Tensor) -> Tensor:
            require_shape(images, shape)
            return standardized(images.flatten(1), shape[0]) - mean.to(images)

        super().__init__(bank, embed, None, copy, strict, norm_gradient, index=index)


def standardized(pixels: Tensor, channels: int) -> Tensor:
    """Shifts each channel of flattened images, (N, C·H·W), to mean 0, and scales each image to unit contrast."""
    planes = pixels.unflatten(1, (channels, -1))
    planes = planes - planes.mean(2, keepdim=True)
    contrast = (planes.square().mean((1, 2), keepdim=True) + MIN_VARIANCE).sqrt()
    return (planes / contrast).flatten(1)
