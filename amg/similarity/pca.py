"""A descriptor in closed form: PCA-whitened pixels. It needs no training and no download."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.descriptor import DescriptorSimilarity


class PCAWhitening:
    """Projects pictures on the first principal directions of the bank, each divided by its standard deviation.

    Args:
        bank: pictures to fit on, repeats counted once.
        directions: how many to keep, at most the bank's size less one.
    """

    def __init__(self, bank: TrainingBank, directions: int = 128):
        pixels = bank.pixels().double()
        self.mean = pixels.mean(0)
        centred = pixels - self.mean
        # N pictures span fewer than D directions: the eigenvectors of the N × N Gram matrix give the same ones faster
        values, left = torch.linalg.eigh(centred @ centred.T)
        rank = min(directions, len(bank) - 1)
        values, left = values[-rank:].flip(0), left[:, -rank:].flip(1)
        self.whiten = (centred.T @ left) / values * len(bank) ** 0.5

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        return (pixels - self.mean.to(pixels)) @ self.whiten.to(pixels)


class PCASimilarity(DescriptorSimilarity):
    """`DescriptorSimilarity` of PCA-whitened pixels.

    Of the closed-form world's exact novel draws 1 % lie beyond the default copy threshold, 0.9, and 10 % beyond the
    strict one, 0.8; copies lie at 1.0.
    """

    def __init__(
        self,
        bank: TrainingBank,
        directions: int = 128,
        copy: float = 0.9,
        strict: float = 0.8,
        norm_gradient: bool = False,
    ):
        super().__init__(bank, PCAWhitening(bank, directions), None, copy, strict, norm_gradient)
