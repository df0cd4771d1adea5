"""Norms along the trajectory that no ordinary trajectory has (Broken Memories, arXiv 2605.22050)."""

from __future__ import annotations

import torch
from torch import Tensor

from amg.detectors.base import Detector
from amg.step import Step
from amg.tensors import norm

FLOOR = 1e-6
"""Standard deviations below this part of their mean are float32 rounding."""


class Norms(Detector):
    """max over t of min(|z(‖δ_t‖)|, |z(‖x̂0‖)|), δ_t = x_{t−1} − x_t: how strange the strangest step is.

    z is the deviation from the mean of ordinary trajectories at the same step, in their standard deviations. The paper
    calls a trajectory memorized at the first step where both exceed 3; this score exceeds 3 if and only if it does at
    any step. It costs no network call beyond those of sampling, and no text.

    Args:
        mean, deviation: of (‖δ_t‖, ‖x̂0‖) at each step, (S, 2); from `learn`.
    """

    learns = True
    chain = slice(None)

    def __init__(self, mean: Tensor | None = None, deviation: Tensor | None = None):
        self.mean, self.deviation = mean, deviation

    def see(self, step: Step, after: Tensor) -> Tensor:
        return torch.stack([norm(after - step.x_t), norm(step.x0)], dim=1)

    def score(self, seen: Tensor) -> Tensor:
        if self.mean is None:
            raise ValueError("detector.norms: has seen no ordinary trajectories; score with what `learn` returns")
        z = (seen - self.mean.to(seen)) / self.deviation.to(seen)
        return z.abs().amin(2).amax(1)

    def learn(self, ordinary: Tensor) -> Norms:
        """
        Raises:
            ValueError: for fewer than 2 trajectories.
        """
        if len(ordinary) < 2:
            raise ValueError(f"detector.norms: a standard deviation needs 2 ordinary trajectories, got {len(ordinary)}")
        mean = ordinary.mean(0)
        return Norms(mean, ordinary.std(0).maximum(FLOOR * mean))
