"""Change of the noise prediction from one early step to the next ("Early Detection", ICML 2026 submission)."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.detectors.base import Detector
from amg.step import Step


class DSM(Detector):
    """‖ε(x_{t−1}, y) − ε(x_t, y)‖₂² of two steps of the trajectory, one after the other.

    It needs no unconditional prediction, hence no classifier-free guidance; of a guided trajectory it takes the
    conditional prediction, and of one without a condition the only one.

    Args:
        first: place of the first of the two steps, from 0. The authors' best is 1: the second and third step.
    """

    def __init__(self, first: int = 1):
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise ValueError(f"detector.dsm.first must be a whole number >= 0, got {first}")
        self.chain = slice(first, first + 2)

    def see(self, step: Step, after: Tensor | None) -> Tensor:
        return (step.eps if step.eps_cond is None else step.eps_cond).flatten(1)

    def keep(self, seen: Tensor) -> Tensor:
        change = (seen[:, 1] - seen[:, 0]).square().sum(1)
        return torch.stack([torch.zeros_like(change), change], dim=1)[:, :, None]

    def score(self, seen: Tensor) -> Tensor:
        return seen[:, 1, 0]
