"""The lab's own networks as similarities: one descriptor guides, the other only judges, the scorer finds candidates."""

from __future__ import annotations

import torch

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
from amg.similarity.descriptor import DescriptorSimilarity


class LabDescriptor(DescriptorSimilarity):
    """Cosine of a shipped descriptor; its copy threshold is its own (1 % of distinct pictures lie beyond it).

    Args:
        bank: training pictures, 32×32.
        which: `guide` or `judge`; of different build and seed.
        strict: the stricter threshold.
        norm_gradient: as `DescriptorSimilarity`'s.
        device: where the descriptor runs, and the pictures are.
        index: how the nearest is found, "exact" or "faiss"; see `DescriptorSimilarity`.
    """

    def __init__(
        self,
        bank: TrainingBank,
        which: str = "guide",
        strict: float = 0.9,
        norm_gradient: bool = False,
        device: str | torch.device = "cpu",
        index: str = "exact",
    ):
        from amg.lab import descriptor

        net = descriptor(which).to(device)
        identity = Identity.of(net, f"lab_{which}")
        super().__init__(bank, net.embed, None, net.copy, strict, norm_gradient, identity, index)


class LabScorer(DescriptorSimilarity):
    """Cosine of the shipped scorer's image embeddings: CLIP's part in the lab. It has no copy threshold of its own.

    Args:
        bank: training pictures, 32×32.
        device, index: as `LabDescriptor`'s.
    """

    def __init__(self, bank: TrainingBank, device: str | torch.device = "cpu", index: str = "exact"):
        from amg.lab import scorer

        tower = scorer().image_tower.to(device)
        super().__init__(bank, tower.embed, identity=Identity.of(tower, "lab_scorer"), index=index)
