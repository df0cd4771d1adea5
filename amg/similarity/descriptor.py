"""Cosine of copy-detection descriptors (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
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
        norm_gradient: lets the gradient through the norm of E(x) as well; by default it is held fixed, as the mean of
            Eq. 8 is. Through the norm ∇σ vanishes exactly where a copy is reached, and guidance never lets go of it.
            An `embed` that normalises inside has the norm's gradient whatever is said here.
    """

    def __init__(
        self,
        bank: TrainingBank,
        embed: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        copy: float = 0.5,
        strict: float = 0.4,
        norm_gradient: bool = False,
    ):
        self.bank, self.embed, self.preprocess = bank, embed, preprocess
        self.copy, self.strict, self.norm_gradient = copy, strict, norm_gradient

    def descriptors(self, images: Tensor) -> Tensor:
        """E(x), (B, D), of unit length."""
        embedding = self.embed(images if self.preprocess is None else self.preprocess(images))
        norm = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return embedding / (norm if self.norm_gradient else norm.detach())

    def __call__(self, images: Tensor) -> Match:
        descriptors = self.descriptors(images)
        vectors = self.bank.vectors(self, descriptors.device, descriptors.dtype)
        with torch.no_grad():
            index = (descriptors.detach() @ vectors.T).argmax(1)
        return Match((descriptors * vectors[index]).sum(1), index)
