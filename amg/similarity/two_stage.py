"""Search in two stages: one descriptor proposes candidates, another ranks them (in the paper, CLIP and SSCD)."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.similarity.base import Match
from amg.similarity.descriptor import DescriptorSimilarity


class TwoStage:
    """σ of the fine descriptor, maximal over the candidates of the coarse one; its gradient is the fine one's.

    Args:
        coarse: proposes; its own copy threshold plays no part.
        fine: ranks, and decides what counts as a copy. Of the same bank.
        candidates: how many are proposed, at most the bank's size.
    """

    def __init__(self, coarse: DescriptorSimilarity, fine: DescriptorSimilarity, candidates: int = 100):
        if candidates < 1:
            raise ValueError(f"similarity.candidates must be >= 1, got {candidates}")
        if coarse.bank is not fine.bank:
            raise ValueError("similarity: both stages must search the same bank")
        self.coarse, self.fine, self.candidates = coarse, fine, candidates
        self.stages = (coarse, fine)
        self.bank, self.copy, self.strict = fine.bank, fine.copy, fine.strict
        self.modules = fine.modules

    def __call__(self, images: Tensor) -> Match:
        descriptors = self.fine.descriptors(images)
        index = self._ranked(images, descriptors, self.candidates)[:, 0]
        return Match((descriptors * self._fine(index, descriptors)).sum(1), index)

    @torch.no_grad()
    def neighbours(self, images: Tensor, k: int) -> Tensor:
        """Indices of the k nearest training images among the candidates, of which there are k at least, (B, k)."""
        return self._ranked(images, self.fine.descriptors(images), max(k, self.candidates))[:, :k]

    def others(self, images: Tensor, own: Tensor) -> Match:
        """The nearest training image of each by the fine descriptor, one left out; see `DescriptorSimilarity`."""
        return self.fine.others(images, own)

    @torch.no_grad()
    def nearest(self, images: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Cosines and indices of the k nearest training images among the candidates, (B, k)."""
        descriptors = self.fine.descriptors(images)
        index = self._ranked(images, descriptors, max(k, self.candidates))[:, :k]
        return (self._fine(index, descriptors) * descriptors[:, None]).sum(2), index

    @torch.no_grad()
    def _ranked(self, images: Tensor, descriptors: Tensor, candidates: int) -> Tensor:
        """Candidates, the most alike by the fine descriptor first."""
        found = self.coarse.neighbours(images.detach(), min(candidates, len(self.bank)))
        products = (self._fine(found, descriptors) * descriptors[:, None]).sum(2)
        return found.gather(1, products.argsort(1, descending=True))

    def _fine(self, index: Tensor, like: Tensor) -> Tensor:
        vectors = self.fine.vectors(like)
        return vectors[index.to(vectors.device)].to(like)
