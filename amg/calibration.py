"""Learns λ_t from unguided chains of ordinary samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.thresholds import Calibrated


@dataclass(frozen=True)
class Calibration:
    """A learned threshold and how often it flags ordinary chains."""

    threshold: Calibrated
    learned: float
    """Share of the chains it was learned on that it flags at any step, before the cap."""
    held_out: float
    """The same on chains it has not seen, before the cap."""
    held_out_capped: float
    """The same with the cap: what a user of the threshold will see."""


def calibrate(times: Tensor, traces: Tensor, held_out: Tensor, rate: float, cap: float) -> Calibration:
    """The lowest curve of equal per-step quantiles that flags at most `rate` of whole chains, capped.

    A chain is flagged if its similarity exceeds λ_t at any step, so per-step quantiles must be stricter than `rate`:
    one quantile for all steps is found, among those that the chains can tell apart.

    Args:
        times: fractions of the schedule of the T steps, (T,).
        traces: similarities of n ordinary chains, (T, n).
        held_out: those of other ordinary chains, (T, m).
        rate: share of ordinary chains that may be flagged, in (0, 1).
        cap: λ_t never exceeds it; the similarity's copy threshold, so that no copy passes unseen.
    """
    if not 0 < rate < 1:
        raise ValueError(f"calibrate.rate must lie in (0, 1), got {rate}")
    ordered = traces.sort(dim=1).values
    for place in range(traces.shape[1]):  # from the lowest order statistic up; flagged chains only get fewer
        curve = ordered[:, place]
        learned = _flagged(traces, curve)
        if learned <= rate:
            break
    order = times.argsort()
    capped = curve.clamp(max=cap)
    threshold = Calibrated(
        tuple(round(t, 6) for t in times[order].tolist()), tuple(round(v, 6) for v in capped[order].tolist())
    )
    return Calibration(threshold, learned, _flagged(held_out, curve), _flagged(held_out, capped))


def _flagged(traces: Tensor, curve: Tensor) -> float:
    return (traces > curve[:, None]).any(dim=0).to(torch.float64).mean().item()
