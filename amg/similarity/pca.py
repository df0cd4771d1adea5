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

    def __init__(self, bank: TrainingBank, directions: int = 64):
        pixels = bank.pixels().double()
        self.mean = pixels.mean(0)
        _, singular, rows = torch.linalg.svd(pixels - self.mean, full_matrices=False)
        rank = min(directions, len(bank) - 1)
        self.whiten = (rows[:rank] / singular[:rank, None] * len(bank) ** 0.5).T.contiguous()

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        return (pixels - self.mean.to(pixels)) @ self.whiten.to(pixels)


class PCASimilarity(DescriptorSimilarity):
    """`DescriptorSimilarity` of PCA-whitened pixels.

    The default copy threshold, 0.8, lies between the cosine of a copy (1.0) and that of the emoji's nearest distinct
    pictures (median 0.57, 90th percentile 0.89: it errs on the side of calling a picture a copy).
    """

    def __init__(self, bank: TrainingBank, directions: int = 64, copy: float = 0.8, strict: float = 0.7):
        super().__init__(bank, PCAWhitening(bank, directions), copy=copy, strict=strict)
