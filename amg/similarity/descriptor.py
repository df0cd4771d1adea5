"""Cosine of copy-detection descriptors (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
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
        identity: names the embedding, its weights and preprocessing, so that a bank with a cache keeps its embeddings
            on disk; in memory only where None.
    """

    def __init__(
        self,
        bank: TrainingBank,
        embed: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        copy: float = 0.5,
        strict: float = 0.4,
        norm_gradient: bool = False,
        identity: Identity | None = None,
    ):
        self.bank, self.embed, self.preprocess = bank, embed, preprocess
        self.copy, self.strict, self.norm_gradient, self.identity = copy, strict, norm_gradient, identity
        self.training = self
        bank.stored(self)  # others' vectors in the bank's cache are told now, not in the middle of a run

    def descriptors(self, images: Tensor) -> Tensor:
        """E(x), (B, D), of unit length."""
        embedding = self.embed(images if self.preprocess is None else self.preprocess(images))
        norm = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return embedding / (norm if self.norm_gradient else norm.detach())

    def vectors(self, like: Tensor) -> Tensor:
        """E(n) of all training pictures, (N, D), on the device and in the dtype of `like`."""
        return self.bank.vectors(self.training, like.device, like.dtype)

    def __call__(self, images: Tensor) -> Match:
        descriptors = self.descriptors(images)
        vectors = self.vectors(descriptors)
        with torch.no_grad():
            index = (descriptors.detach() @ vectors.T).argmax(1)
        return Match((descriptors * vectors[index]).sum(1), index)
