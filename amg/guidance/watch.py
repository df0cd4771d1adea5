"""Detection (Eq. 10): which samples come closer to a training image than they may."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.guidance.looks import Looks
from amg.similarity.base import Match, Similarity, measure
from amg.step import Step
from amg.thresholds import Threshold


@dataclass(frozen=True)
class Sight:
    """Detection at one step; one row per sample."""

    similarity: Tensor
    """σ_t of x̂0 to its nearest training image, (B,); NaN if x̂0 is not finite, and for a sample that rests."""
    index: Tensor
    """Index of that image in the bank, (B,); 0 for a sample that rests."""
    lam: Tensor
    """λ_t, less the margin if the sample was flagged before, (B,)."""
    flagged: Tensor
    """σ_t > λ_t, (B,) bool."""
    ever: Tensor
    """Flagged at this step or before, (B,) bool."""
    until: Tensor
    """t down to which a sample rests, (B,)."""


class Watch:
    """Compares σ_t of the predicted image with λ_t.

    Decoding and comparing are the price of detection. The last step's are remembered, so that all who ask about the
    same `Step` object share them. Those of all samples that are looked at are one call.

    Args:
        similarity: σ_t; see `amg.similarity`.
        threshold: λ_t; see `amg.thresholds`.
        margin: a sample that was flagged once is held to λ_t − margin from then on. 0 is the paper's Eq. 10.
        looks: when a sample that was never flagged is looked at again; None looks at every step, as the paper does.
    """

    def __init__(self, similarity: Similarity, threshold: Threshold, margin: float = 0.0, looks: Looks | None = None):
        if not margin >= 0:  # NaN fails too
            raise ValueError(f"guidance.margin must be >= 0, got {margin}")
        self.similarity, self.threshold, self.margin, self.looks = similarity, threshold, margin, looks
        self._last: tuple[Step, Tensor, Tensor, Match] | None = None

    @torch.no_grad()
    def __call__(self, step: Step, last: Sight | None = None) -> Sight:
        """Returns what is detected at a step.

        Args:
            last: what was detected at the step before; None at the first.
        """
        due = torch.ones_like(step.t, dtype=torch.bool)
        if self.looks is not None and last is not None:
            due = last.ever.to(due.device) | self.looks.due(step.t, last.until)
        rows = due.nonzero().flatten()
        similarity, index = self._match(step, rows)
        lam = torch.as_tensor(self.threshold(step.t)).to(similarity).expand_as(similarity)
        if last is not None:
            lam = torch.where(last.ever, lam - self.margin, lam)
        flagged = similarity > lam
        until = step.t
        if self.looks is not None:
            until = self.looks(step.t, (lam - similarity).to(step.t))
            until = until if last is None else torch.where(due, until, last.until)
        return Sight(similarity, index, lam, flagged, flagged if last is None else flagged | last.ever, until)

    @torch.no_grad()
    def images(self, step: Step, rows: Tensor) -> Tensor:
        """Returns the predicted images of some samples that are looked at in a step, (R, 3, H, W).

        Args:
            rows: (R,), ascending.
        """
        if self._last is None or self._last[0] is not step:
            return step.decode(step.x0[rows])
        _, looked, images, _ = self._last
        return images[torch.searchsorted(looked, rows.to(looked.device))]

    def _match(self, step: Step, rows: Tensor) -> Match:
        """σ_t and neighbours of all samples, (B,); NaN and 0 where a sample is not among the rows."""
        whole, last = len(rows) == len(step.x0), self._last
        if last is None or last[0] is not step or len(last[1]) != len(rows) or not (last[1] == rows).all():
            if not len(rows):  # all rest
                return Match(torch.full_like(step.t, torch.nan), torch.zeros_like(step.t, dtype=torch.long))
            images = step.decode(step.x0 if whole else step.x0[rows])
            self._last = last = (step, rows, images, measure(self.similarity, images))
        match = last[3]
        if whole:
            return match
        value = match.value.new_full((len(step.x0),), torch.nan)
        index = match.index.new_zeros(len(step.x0))
        places = rows.to(value.device)
        return Match(value.index_copy(0, places, match.value), index.index_copy(0, places, match.index))
