"""A descriptor in closed form: PCA-whitened pixels. It needs no training and no download."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.descriptor import DescriptorSimilarity

CHUNK = 4096
"""Pictures in float64 at once: all of CIFAR-10's would take 1.2 GB."""


class PCAWhitening:
    """Projects pictures on the first principal directions of the bank, each divided by its standard deviation.

    Args:
        bank: pictures to fit on, repeats counted once.
        directions: how many to keep; at most the bank's size less one, and the number of pixel values.
    """

    def __init__(self, bank: TrainingBank, directions: int = 128):
        pixels, self.shape = bank.pixels(), bank.images.shape[1:]
        self.mean = torch.stack([part.double().sum(0) for part in pixels.split(CHUNK)]).sum(0) / len(pixels)
        fit = by_covariance if len(pixels) > pixels.shape[1] else by_gram
        self.whiten = fit(pixels, self.mean, min(directions, len(pixels) - 1, pixels.shape[1]))

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:  # as many values in another shape would be compared askew
            raise ValueError(
                f"images are {tuple(images.shape[1:])} but the bank's {tuple(self.shape)}: load the bank with "
                "size=(height, width) of the model's images"
            )
        pixels = images.flatten(1)
        return (pixels - self.mean.to(pixels)) @ self.whiten.to(pixels)


def by_gram(pixels: Tensor, mean: Tensor, rank: int) -> Tensor:
    """Whitening directions of N pictures of D values, (D, rank), from the N × N Gram matrix; for N <= D."""
    centred = pixels.double() - mean
    values, left = torch.linalg.eigh(centred @ centred.T)
    values, left = values[-rank:].flip(0), left[:, -rank:].flip(1)
    return (centred.T @ left) / values * len(pixels) ** 0.5


def by_covariance(pixels: Tensor, mean: Tensor, rank: int) -> Tensor:
    """The same up to sign from the D × D covariance matrix; for N > D."""
    scatter = mean.new_zeros(pixels.shape[1], pixels.shape[1])
    for part in pixels.split(CHUNK):
        centred = part.double() - mean
        scatter.addmm_(centred.T, centred)
    values, directions = torch.linalg.eigh(scatter)
    values, directions = values[-rank:].flip(0), directions[:, -rank:].flip(1)
    return directions / values.sqrt() * len(pixels) ** 0.5


class PCASimilarity(DescriptorSimilarity):
    """`DescriptorSimilarity` of PCA-whitened pixels.

    Of the closed-form world's exact novel draws 1 % lie beyond the default copy threshold, 0.9, and 10 % beyond the
    strict one, 0.8; copies lie at 1.0.

    Args:
        bank, directions: as `PCAWhitening`'s.
        norm_gradient: as `DescriptorSimilarity`'s.
        index: how the nearest is found, "exact" or "faiss"; see `DescriptorSimilarity`.
    """

    compares_pixels = True
    """Pictures must have the size of the bank's."""

    def __init__(
        self,
        bank: TrainingBank,
        directions: int = 128,
        copy: float = 0.9,
        strict: float = 0.8,
        norm_gradient: bool = False,
        index: str = "exact",
    ):
        super().__init__(bank, PCAWhitening(bank, directions), None, copy, strict, norm_gradient, index=index)
