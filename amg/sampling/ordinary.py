"""Lessons of unguided trajectories of ordinary samples: λ_t, and the norms that Broken Memories compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amg.guidance.rivals.broken_memories import Norms
from amg.models.base import Model
from amg.sampling.loop import sample
from amg.step import Step
from amg.tensors import norm
from amg.thresholds import Calibrated


@dataclass(frozen=True)
class Calibration:
    """A learned threshold and how often it flags ordinary trajectories."""

    threshold: Calibrated
    learned: float
    """Share of the trajectories it was learned on that it flags at any step, before the cap."""
    held_out: float
    """The same on trajectories it has not seen, before the cap."""
    held_out_capped: float
    """The same with the cap: what a user of the threshold will see."""


def calibrate(times: Tensor, traces: Tensor, held_out: Tensor, rate: float, cap: float) -> Calibration:
    """The lowest curve of equal per-step quantiles that flags at most `rate` of whole trajectories, capped.

    A trajectory is flagged if its similarity exceeds λ_t at any step, so per-step quantiles must be stricter than
    `rate`: one quantile for all steps is found, among those that the trajectories can tell apart.

    Args:
        times: fractions of the schedule of the T steps, (T,).
        traces: similarities of n ordinary trajectories, (T, n).
        held_out: those of other ordinary trajectories, (T, m).
        rate: share of ordinary trajectories that may be flagged, in (0, 1).
        cap: λ_t never exceeds it; the similarity's copy threshold, so that no copy passes unseen.
    """
    if not 0 < rate < 1:
        raise ValueError(f"calibrate.rate must lie in (0, 1), got {rate}")
    ordered = traces.sort(dim=1).values
    for place in range(traces.shape[1]):  # from the lowest order statistic up; flagged trajectories only get fewer
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


def learn_norms(
    model: Model,
    seeds: Sequence[int],
    prompts: Sequence[str | int] | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Norms:
    """Draws one unguided trajectory per seed and measures ‖x̂0‖, ‖x_{t−1} − x_t‖ and ‖x_{t−1}‖ at each step.

    Args:
        prompts: ordinary prompts or labels, one per seed; None draws without condition.
        options: of `amg.sampling.sample`; trajectories to compare must share s0, scheduler, steps and eta.
    Raises:
        ValueError: for fewer than two seeds, which have no standard deviation.
    """
    if len(seeds) < 2:
        raise ValueError(f"norms have a mean and a standard deviation: give two seeds at least, got {len(seeds)}")
    batches = []
    for start in range(0, len(seeds), batch_size):
        some, probe = slice(start, start + batch_size), _Norms()
        x0 = sample(model, seeds[some], prompts=prompts and prompts[some], on_step=probe, **options)
        batches.append(probe.finish(x0))
    norms = torch.cat(batches, dim=2).double().cpu()  # (3, T, n)
    return Norms(torch.tensor(probe.times), *torch.stack([norms.mean(2), norms.std(2)], dim=2))


class _Norms:
    """Norms along one batch; each step waits for the next, which shows what became of it."""

    def __init__(self):
        self.times: list[float] = []
        self.norms: list[Tensor] = []
        self.last: Step | None = None

    def __call__(self, step: Step, state: Any) -> None:
        if self.last is not None:
            self._became(step.x_t)
        self.times.append(step.t[0].item())
        self.last = step

    def finish(self, x0: Tensor) -> Tensor:
        """Returns ‖x̂0‖, ‖x_{t−1} − x_t‖ and ‖x_{t−1}‖, (3, T, B)."""
        self._became(x0)
        return torch.stack(self.norms, dim=1)

    def _became(self, after: Tensor) -> None:
        self.norms.append(torch.stack([norm(self.last.x0), norm(after - self.last.x_t), norm(after)]))
