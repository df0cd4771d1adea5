"""Cosine of copy-detection descriptors (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank import TrainingBank
from amg.similarity.base import Match


class DescriptorSimilarity:
    """σ = max over n of E(x)ᵀ E(n), E an L2-normalised embedding (Eq. 9).

    Args:
        bank: training pictures; their embeddings are computed once and kept with the bank.
        embed: (B, 3, H, W) to (B, D), differentiable; normalised here.
        preprocess: applied to pictures in [−1, 1] before `embed`.
        copy, strict: a picture is memorized if σ > copy (paper, SSCD: 0.5; strict: 0.4).
    """

    def __init__(
        self,
        bank: TrainingBank,
        embed: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        copy: float = 0.5,
        strict: float = 0.4,
    ):
        self.bank, self.embed, self.preprocess = bank, embed, preprocess
        self.copy, self.strict = copy, strict

    def descriptors(self, images: Tensor) -> Tensor:
        """E(x), (B, D), of unit length."""
        return F.normalize(self.embed(images if self.preprocess is None else self.preprocess(images)), dim=1)

    def __call__(self, images: Tensor) -> Match:
        descriptors = self.descriptors(images)
        vectors = self.bank.vectors(self, descriptors.device, descriptors.dtype)
        with torch.no_grad():
            index = (descriptors.detach() @ vectors.T).argmax(1)
        return Match((descriptors * vectors[index]).sum(1), index)
