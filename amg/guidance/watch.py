"""Detection (Eq. 10): which samples come closer to a training image than they may."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.similarity.base import Match, Similarity, measure
from amg.step import Step
from amg.thresholds import Threshold


@dataclass(frozen=True)
class Sight:
    """Detection at one step; one row per sample."""

    similarity: Tensor
    """σ_t of x̂0 to its nearest training image, (B,); NaN if x̂0 is not finite."""
    index: Tensor
    """Index of that image in the bank, (B,)."""
    lam: Tensor
    """λ_t, less the margin if the sample was flagged before, (B,)."""
    flagged: Tensor
    """σ_t > λ_t, (B,) bool."""
    ever: Tensor
    """Flagged at this step or before, (B,) bool."""


class Watch:
    """Compares σ_t of the predicted image with λ_t.

    Decoding and comparing are the price of detection. The last step's are remembered, so that all who ask about the
    same `Step` object share them.

    Args:
        similarity: σ_t; see `amg.similarity`.
        threshold: λ_t; see `amg.thresholds`.
        margin: a sample that was flagged once is held to λ_t − margin from then on. 0 is the paper's Eq. 10.
    """

    def __init__(self, similarity: Similarity, threshold: Threshold, margin: float = 0.0):
        if not margin >= 0:  # NaN fails too
            raise ValueError(f"guidance.margin must be >= 0, got {margin}")
        self.similarity, self.threshold, self.margin = similarity, threshold, margin
        self._last: tuple[Step, Tensor, Match] | None = None

    @torch.no_grad()
    def __call__(self, step: Step, ever: Tensor | None = None) -> Sight:
        """Returns what is detected at a step.

        Args:
            ever: samples that were flagged before, (B,) bool; None at the first step.
        """
        _, (similarity, index) = self.look(step)
        lam = torch.as_tensor(self.threshold(step.t)).to(similarity).expand_as(similarity)
        if ever is not None:
            lam = torch.where(ever, lam - self.margin, lam)
        flagged = similarity > lam
        return Sight(similarity, index, lam, flagged, flagged if ever is None else flagged | ever)

    @torch.no_grad()
    def look(self, step: Step) -> tuple[Tensor, Match]:
        """Returns the predicted images, (B, 3, H, W), and their nearest training images."""
        last = self._last
        if last is None or last[0] is not step:
            images = step.decode(step.x0)
            self._last = last = (step, images, measure(self.similarity, images))
        return last[1], last[2]
