"""Repulsion from the ball around each reference image ("Shielded Diffusion", SPELL, Kirchhof et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amg.guidance.rivals.references import Repulsion, away, distances, spacing
from amg.guidance.streams import own_direction


class SparseRepellency(Repulsion):
    """Pushes x̂0 out of the ball of every reference that it lies in, in the space that is sampled:

        x̂0 ← x̂0 + scale Σ_k relu(radius / ‖x̂0 − z_k‖ − 1) (x̂0 − z_k)

    At scale 1 a sample in one ball lands on its surface. At x̂0 = z_k, up to rounding, the formula has no direction; its
    length tends to `radius`. A direction that the sample's seed alone decides is taken there.

    Args:
        references: (N, C, H, W) in the space of the samples; see `amg.guidance.rivals.references.of_bank`.
        radius: of the balls, >= 0, in the ℓ2 norm of the space; 0 is plain sampling. None, ours: the median distance
            of a reference to its nearest other.
        scale: the paper's overcompensation.
        until: acts while t >= until; the paper's 0 acts at every step.
    """

    def __init__(self, references: Tensor, radius: float | None = None, scale: float = 1.6, until: float = 0.0):
        super().__init__(references, scale, until)
        if radius is not None and not radius >= 0:
            raise ValueError(f"guidance.radius must be >= 0, got {radius}")
        self.radius = spacing(references) if radius is None else radius

    def force(self, x0: Tensor, references: Tensor, seeds: Sequence[int]) -> Tensor:
        distance = distances(x0, references)
        rounding = torch.finfo(x0.dtype).eps * torch.linalg.vector_norm(x0, dim=1, keepdim=True)
        copy = distance <= rounding
        weights = (self.radius / distance.masked_fill(copy, torch.inf) - 1).clamp(min=0)
        force = away(x0, references, weights)
        rows = copy.any(1).nonzero().flatten() if self.radius > 0 else ()
        if len(rows):
            here = x0[rows].view(len(rows), *self.references.shape[1:])
            force[rows] += self.radius * own_direction([seeds[i] for i in rows.tolist()], here).flatten(1)
        return force
