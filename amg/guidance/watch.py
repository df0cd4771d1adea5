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
    same `Step` object share them. Samples that are looked at are one call of the descriptor; with `slopes`, those that
    were flagged at the step before are decoded apart.

    Args:
        similarity: σ_t; see `amg.similarity`.
        threshold: λ_t; see `amg.thresholds`.
        margin: a sample that was flagged once is held to λ_t − margin from then on. 0 is the paper's Eq. 10.
        looks: when a sample that was never flagged is looked at again; None looks at every step, as the paper does.
        slopes: keeps what `slope` needs of samples that were flagged at the step before: they likely are again, and
            decoding them once more would cost as much as looking.
    """

    def __init__(
        self,
        similarity: Similarity,
        threshold: Threshold,
        margin: float = 0.0,
        looks: Looks | None = None,
        slopes: bool = False,
    ):
        if not margin >= 0:  # NaN fails too
            raise ValueError(f"guidance.margin must be >= 0, got {margin}")
        self.similarity, self.threshold, self.margin, self.looks = similarity, threshold, margin, looks
        self.slopes = slopes
        self._last: tuple[Step, Tensor, Tensor, Match] | None = None
        self._graph: tuple[Tensor, Tensor, Tensor] | None = None

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
        again = last.flagged.to(rows.device)[rows] if self.slopes and last is not None else torch.zeros_like(rows) > 0
        similarity, index = self._match(step, rows, again, None if last is None else last.index)
        lam = torch.as_tensor(self.threshold(step.t)).to(similarity).expand_as(similarity)
        if last is not None:
            lam = torch.where(last.ever, lam - self.margin, lam)
        flagged = similarity > lam
        if not flagged.any():
            self._graph = None  # what it holds is large
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

    def slope(self, step: Step, rows: Tensor) -> Tensor:
        """Returns ∇σ_t with respect to x̂0 of some samples that are looked at in a step, (R, C, H, W).

        Args:
            rows: (R,).
        """
        rows = rows.to(step.x0.device)
        graph, self._graph = self._graph, None
        with torch.inference_mode(False):
            slopes, kept = torch.empty_like(step.x0[rows]), torch.zeros_like(rows, dtype=torch.bool)
            if graph is not None:
                looked, x0, similarity = graph
                kept = torch.isin(rows, looked)
                places = torch.searchsorted(looked, rows[kept])
                value = similarity[places.to(similarity.device)].sum()
                slopes[kept] = torch.autograd.grad(value, x0)[0][places]
            if not kept.all():
                slopes[~kept] = slope(self.similarity, step, rows[~kept])
        return slopes

    def _match(self, step: Step, rows: Tensor, again: Tensor, before: Tensor | None) -> Match:
        """σ_t and neighbours of all samples, (B,); NaN and 0 where a sample is not among the rows."""
        last = self._last
        if last is None or last[0] is not step or len(last[1]) != len(rows) or not (last[1] == rows).all():
            if not len(rows):  # all rest
                return Match(torch.full_like(step.t, torch.nan), torch.zeros_like(step.t, dtype=torch.long))
            self._last = last = (step, rows, *self._look(step, rows, again, before))
        match = last[3]
        if len(rows) == len(step.x0):
            return match
        value = match.value.new_full((len(step.x0),), torch.nan)
        index = match.index.new_zeros(len(step.x0))
        places = rows.to(value.device)
        return Match(value.index_copy(0, places, match.value), index.index_copy(0, places, match.index))

    def _look(self, step: Step, rows: Tensor, again: Tensor, before: Tensor | None) -> tuple[Tensor, Match]:
        """Predicted images of the rows and their match; keeps the graph of those that were flagged before.

        Args:
            before: neighbours of all samples at the step before, (B,); None at the first.
        """

        def compare(images: Tensor) -> Match:
            return measure(self.similarity, images, None if before is None else before[rows.to(before.device)])

        self._graph = None
        x0 = step.x0 if len(rows) == len(step.x0) else step.x0[rows]
        if not again.any():
            images = step.decode(x0)
            return images, compare(images)
        with torch.inference_mode(False), torch.enable_grad():
            again = again.clone()  # no tensor of inference mode may be kept for the way back
            kept = x0[again].clone().requires_grad_()
            images = step.decode(kept)
            if not again.all():
                with torch.no_grad():
                    others = step.decode(x0[~again])
                order = torch.cat([again.nonzero(), (~again).nonzero()]).flatten().argsort()
                images = torch.cat([images, others])[order.to(images.device)]
            match = compare(images)
            self._graph = rows[again], kept, match.value[again.to(match.value.device)]
        return images.detach(), Match(match.value.detach(), match.index)


def slope(similarity: Similarity, step: Step, rows: Tensor) -> Tensor:
    """Returns ∇σ_t with respect to x̂0 of some samples, (R, C, H, W), by decoding them.

    Args:
        rows: (R,).
    """
    with torch.inference_mode(False), torch.enable_grad():
        x0 = step.x0[rows].clone().requires_grad_()
        return torch.autograd.grad(similarity(step.decode(x0)).value.sum(), x0)[0]
