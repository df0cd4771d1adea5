"""Normalised L2 distance in pixel space (Eq. 8; Carlini et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.base import Match

TINY = 1e-12
"""Smallest mean distance that is divided by."""


class NormalizedL2:
    """σ = − ℓ2(x, n0) / (α · mean of ℓ2(x, z) over the k nearest z) (Eq. 8).

    Args:
        bank: training images; repeats count once in the mean.
        k: how many neighbours the mean takes, n0 among them; at most the bank's size.
        scale: the paper's α.
        mean_gradient: lets the gradient through the mean as well; by default neighbour and mean are held fixed.
        copy, strict: an image is memorized if σ > copy (paper: distance < 1.4; strict: < 1.6).
    """

    compares_pixels = True
    """Images must have the size of the bank's."""

    def __init__(
        self,
        bank: TrainingBank,
        k: int = 50,
        scale: float = 0.5,
        mean_gradient: bool = False,
        copy: float = -1.4,
        strict: float = -1.6,
    ):
        if k < 2 or scale <= 0:  # at k = 1 the distance is divided by itself
            raise ValueError(f"nL2 needs k >= 2 and scale > 0, got k={k}, scale={scale}")
        if len(bank) < 2:
            raise ValueError("nL2 needs a bank of at least 2 distinct images, got 1")
        self.bank, self.k, self.scale, self.mean_gradient = bank, min(k, len(bank)), scale, mean_gradient
        self.copy, self.strict = copy, strict

    def __call__(self, images: Tensor) -> Match:
        distances, indices = self.bank.search(images.detach(), self.k)
        pixels = images.flatten(1)
        # vector_norm, not a root of a sum: its gradient at distance 0 is 0 and not NaN
        distance = torch.linalg.vector_norm(pixels - self.bank.pixels(indices[:, 0]).to(pixels), dim=1)
        if self.mean_gradient:
            neighbours = self.bank.pixels(indices.flatten()).to(pixels).view(*indices.shape, -1)
            mean = torch.linalg.vector_norm(pixels[:, None] - neighbours, dim=2).mean(1)
        else:
            # no mean is below its smallest; the search's may be, and 0, where training images differ by rounding alone
            mean = torch.maximum(distances.to(pixels).mean(1), distance.detach()).clamp(min=TINY)
        return Match(-distance / (self.scale * mean), indices[:, 0])

    @torch.no_grad()
    def nearest(self, images: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """σ and indices of the k nearest training images, (B, k); exact but for rounding near distance 0."""
        distances, indices = self.bank.search(images, max(k, self.k))
        mean = distances[:, : self.k].mean(1, keepdim=True).clamp(min=TINY)
        return -distances[:, :k] / (self.scale * mean), indices[:, :k]

    def neighbours(self, images: Tensor, k: int) -> Tensor:
        """Indices of the k nearest training images, nearest first, (B, k)."""
        return self.bank.search(images, k)[1]

    @torch.no_grad()
    def others(self, images: Tensor, own: Tensor) -> Match:
        """σ of each image in a bank without one of its images, (B,), and its nearest one there, (B,).

        Args:
            own: index of the training image that is left out, (B,).
        """
        k = min(self.k, len(self.bank) - 1)
        distances, found = self.bank.search(images, k + 1)
        rest = (found == own.to(found.device)[:, None]).long().argsort(dim=1, stable=True)[:, :k]  # that one last
        distances, found = distances.gather(1, rest), found.gather(1, rest)
        return Match(-distances[:, 0] / (self.scale * distances.mean(1).clamp(min=TINY)), found[:, 0])
