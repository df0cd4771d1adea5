"""Thresholds λ_t on the similarity σ_t: guidance acts on the samples with σ_t > λ_t (Eq. 10).

t is the fraction of the schedule in [0, 1], 1 being pure noise; a number or a tensor. With nL2, which is negated
(Eq. 8), thresholds are negative.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


class Threshold(Protocol):
    """Any function of t serves."""

    def __call__(self, t: Time) -> Time: ...


@dataclass(frozen=True)
class Always:
    """λ = −∞: guides every sample at every step (Table 5, "without conditional guidance")."""

    def __call__(self, t: Time) -> Time:
        return t * 0 - math.inf


@dataclass(frozen=True)
class Constant:
    """The same λ at every step (Table 5, "constant λ")."""

    value: float

    def __call__(self, t: Time) -> Time:
        return t * 0 + self.value


@dataclass(frozen=True)
class Parabolic:
    """λ0 + (λ1 − λ0) t²: from λ1 at pure noise to λ0 at the image.

    The paper names a "parabolic schedule" and gives no formula; this one is ours.
    """

    start: float
    """λ0, at t = 0."""
    end: float
    """λ1, at t = 1."""

    def __call__(self, t: Time) -> Time:
        return self.start + (self.end - self.start) * t**2


@dataclass(frozen=True)
class Exponential:
    """end − (end − start) exp(−rate t): the schedule of the supplement and of the released code."""

    start: float
    """λ at t = 0."""
    end: float
    """The level that λ decays to as t grows."""
    rate: float
    """Decay per whole schedule: the released rate per timestep times their number less one."""

    def __call__(self, t: Time) -> Time:
        return self.end - (self.end - self.start) * math.e ** (-self.rate * t)


@dataclass(frozen=True)
class Calibrated:
    """λ_t read off a curve that was learned on ordinary trajectories; linear between its knots, level outside.

    `task=calibrate` learns it and writes it to a file; see `amg.sampling.ordinary`.
    """

    times: Sequence[float]
    """Increasing fractions of the schedule."""
    values: Sequence[float]
    """λ at those times."""

    def __post_init__(self):
        if len(self.times) != len(self.values) or not self.times:
            raise ValueError(f"a curve needs as many times as values, got {len(self.times)} and {len(self.values)}")
        if any(a >= b for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError("the times of a calibrated threshold must increase")

    def __call__(self, t: Time) -> Time:
        if isinstance(t, Tensor):
            return torch.tensor([self(one) for one in t.reshape(-1).tolist()], dtype=t.dtype, device=t.device).view(
                t.shape
            )
        times, values = self.times, self.values
        i = bisect_right(times, t)
        if i == 0:
            return values[0]
        if i == len(times):
            return values[-1]
        share = (t - times[i - 1]) / (times[i] - times[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])
