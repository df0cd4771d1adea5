"""A descriptor in closed form: PCA-whitened pixels. It needs no training and no download."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.base import require_shape
from amg.similarity.descriptor import DescriptorSimilarity
from amg.tensors import floats

CHUNK = 2**24
"""Pixel values in float64 at once, 134 MB."""


class PCAWhitening:
    """Projects images on the first principal directions of the bank, each divided by its standard deviation.

    Args:
        bank: images to fit on, repeats counted once.
        directions: how many to keep; at most the rank of the bank's centred images.
    """

    def __init__(self, bank: TrainingBank, directions: int = 128):
        pixels, self.shape = bank.pixels(), bank.shape
        sums = [floats(part).double().sum(0) for part in pixels.split(_rows(pixels))]
        self.mean = torch.stack(sums).sum(0) / len(pixels)
        fit = by_covariance if len(pixels) > pixels.shape[1] else by_gram
        self.whiten = fit(pixels, self.mean, min(directions, len(pixels) - 1, pixels.shape[1]))

    def __call__(self, images: Tensor) -> Tensor:
        require_shape(images, self.shape)
        pixels = images.flatten(1)
        return (pixels - self.mean.to(pixels)) @ self.whiten.to(pixels)


def by_gram(pixels: Tensor, mean: Tensor, rank: int) -> Tensor:
    """Whitening directions of N images of D values, (D, rank), from the N × N Gram matrix; for N <= D.

    There are fewer where the images span fewer.
    """
    width = max(1, CHUNK // len(pixels))
    columns = list(zip(pixels.split(width, 1), mean.split(width), strict=True))
    gram = sum((centred := floats(part).double() - middle) @ centred.T for part, middle in columns)
    values, left = _leading(gram, rank)
    parts = [(floats(part).double() - middle).T @ left for part, middle in columns]
    return torch.cat(parts) / values * len(pixels) ** 0.5


def by_covariance(pixels: Tensor, mean: Tensor, rank: int) -> Tensor:
    """The same up to sign from the D × D covariance matrix; for N > D."""
    scatter = mean.new_zeros(pixels.shape[1], pixels.shape[1])
    for part in pixels.split(_rows(pixels)):
        centred = floats(part).double() - mean
        scatter.addmm_(centred.T, centred)
    values, directions = _leading(scatter, rank)
    return directions / values.sqrt() * len(pixels) ** 0.5


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, descending, and their vectors in columns, without those that are rounding alone."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    # float32 images: what lies below their rounding is no direction
    some = values > values[0] * len(matrix) * torch.finfo(torch.float32).eps ** 2
    return values[some], vectors[:, some]


def _rows(pixels: Tensor) -> int:
    return max(1, CHUNK // pixels.shape[1])


class PCASimilarity(DescriptorSimilarity):
    """`DescriptorSimilarity` of PCA-whitened pixels.

    Copies lie at 1.0. The default thresholds, 0.9 and 0.8, are strict: of the drawn world's novel samples 1 and 5 % lie
    beyond 0.97 and 0.93, which its models use (`amg.guidance.presets.COPY_THRESHOLDS`).

    Args:
        bank, directions: as `PCAWhitening`'s.
        norm_gradient: as `DescriptorSimilarity`'s.
        index: how the nearest is found, "auto", "exact" or "faiss"; see `DescriptorSimilarity`.
    Raises:
        ValueError: for fewer than 2 directions, in which every cosine is 1, −1 or not a number.
    """

    compares_pixels = True
    """Images must have the size of the bank's."""

    def __init__(
        self,
        bank: TrainingBank,
        directions: int = 128,
        copy: float = 0.9,
        strict: float = 0.8,
        norm_gradient: bool = False,
        index: str = "auto",
    ):
        if len(bank) < 3:
            raise ValueError(f"PCA needs a bank of at least 3 distinct images, got {len(bank)}")
        whitening = PCAWhitening(bank, directions)
        if (kept := whitening.whiten.shape[1]) < 2:
            raise ValueError(
                f"PCA needs at least 2 directions, got directions={directions} and images that span {kept}"
            )
        super().__init__(bank, whitening, None, copy, strict, norm_gradient, index=index)
