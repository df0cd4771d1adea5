"""Repairs trajectories whose norms leave the range of ordinary ones ("Broken Memories", Huang et al., 2026)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.step import Step
from amg.tensors import broadcast, norm


@dataclass(frozen=True)
class Norms:
    """Mean and standard deviation of L2 norms of ordinary trajectories at each of their T steps, in order.

    They belong to one model, sampler, number of steps and CFG scale; `amg.sampling.ordinary.learn_norms` measures them.
    """

    times: Tensor
    """t of the steps, (T,)."""
    x0: Tensor
    """Of ‖x̂0‖, (T, 2)."""
    update: Tensor
    """Of ‖x_{t−1} − x_t‖, (T, 2)."""
    sample: Tensor
    """Of ‖x_{t−1}‖, (T, 2)."""

    def index(self, t: float) -> int:
        """Returns the index of the step at t.

        Raises:
            ValueError: where the trajectories had no step there.
        """
        distance, place = (self.times - t).abs().min(0)
        if distance > 1e-4:
            raise ValueError(f"guidance.norms: learned at {len(self.times)} steps, none of them at t = {t:.4f}")
        return int(place)


@dataclass(frozen=True)
class BrokenState:
    """State of the method; one row per sample."""

    z_x0: Tensor
    """(‖x̂0‖ − mean) / std, (B,)."""
    z_update: Tensor
    """The same of ‖x_t − x_{t+1}‖, the update that led here, (B,); NaN at the first step."""
    flagged: Tensor
    """True if the trajectory has been detected, (B,) bool; it stays so."""
    strong: Tensor
    """True if x̂0 was far out when it was, (B,) bool."""
    x_t: Tensor
    """The noised sample, for the next update, (B, C, H, W)."""


class BrokenMemories(Guidance):
    """Detects a trajectory at the first step where |z(‖x_t − x_{t+1}‖)| and |z(‖x̂0‖)| exceed `detect`. From then on

    - mild: x̂0 is scaled to the mean norm of ordinary trajectories, in the first `early` of the steps;
    - strong, where |z(‖x̂0‖)| exceeded `strong` at detection: ‖x_{t−1} − x_t‖, then ‖x_{t−1}‖, are clamped to the mean
      ± `detect` standard deviations, at all steps left.

    A trajectory that is never detected stays bit-identical. No network calls beyond those of plain sampling.

    Args:
        norms: of ordinary trajectories of this model under these settings, or what learns them when `ready` is called.
            A run learns its own before its first image, from `norms.n` trajectories: no file to go stale or mismatch.
        detect: the authors' 3 standard deviations; inf only watches.
        strong: the authors' 14.
        early: share of the steps in which the mild repair acts; the authors' first 10 of 50.

    The update that leads to x_t is known at t, the one that leaves it is not: detection looks at the former.
    """

    def __init__(
        self, norms: Norms | Callable[[], Norms], detect: float = 3.0, strong: float = 14.0, early: float = 0.2
    ):
        for name, value in (("detect", detect), ("strong", strong)):
            if not value >= 0:
                raise ValueError(f"guidance.{name} must be >= 0, got {value}")
        if not 0 <= early <= 1:
            raise ValueError(f"guidance.early must lie in [0, 1], got {early}")
        self.norms, self.detect, self.strong, self.early = norms, detect, strong, early

    def ready(self) -> BrokenMemories:
        """With norms in place of what learns them."""
        if isinstance(self.norms, Norms):
            return self
        return BrokenMemories(self.norms(), self.detect, self.strong, self.early)

    @torch.no_grad()
    def __call__(self, step: Step, state: BrokenState | None) -> tuple[Tensor, BrokenState]:
        if not isinstance(self.norms, Norms):
            raise ValueError("guidance.norms: not learned yet; call `ready` on the guidance and use what it returns")
        i = self.norms.index(step.t[0].item())
        size = norm(step.x0)
        z_x0 = _z(size, self.norms.x0[i])
        if state is None:
            no = torch.zeros_like(z_x0, dtype=torch.bool)
            state = BrokenState(z_x0, torch.full_like(z_x0, torch.nan), no, no, step.x_t)
        else:
            z_update = _z(norm(step.x_t - state.x_t), self.norms.update[i - 1])
            new = ~state.flagged & (z_x0.abs() > self.detect) & (z_update.abs() > self.detect)
            strong = state.strong | new & (z_x0.abs() > self.strong)
            state = BrokenState(z_x0, z_update, state.flagged | new, strong, step.x_t)
        mild = (state.flagged & ~state.strong).nonzero().flatten()
        if not len(mild) or i >= self.early * len(self.norms.times):
            return step.eps, state
        # the ε whose x̂0 is that of the step, scaled (Eq. 12)
        x0 = step.x0[mild] * broadcast(self.norms.x0[i, 0].to(size) / size[mild]).to(step.x0)
        alpha_bar = broadcast(step.alpha_bar[mild]).to(x0)
        eps = (step.x_t[mild] - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        return step.eps.index_put((mild,), eps.to(step.eps)), state

    @torch.no_grad()
    def shift(self, step: Step, eps: Tensor, state: BrokenState, x_prev: Tensor) -> Tensor | None:
        if not state.strong.any():
            return None
        i = self.norms.index(step.t[0].item())
        clamped = step.x_t + self._clamped(x_prev - step.x_t, self.norms.update[i])
        change = self._clamped(clamped, self.norms.sample[i]) - x_prev
        return torch.where(broadcast(state.strong), change, 0)

    def _clamped(self, x: Tensor, moments: Tensor) -> Tensor:
        """x with its norm in mean ± `detect` standard deviations, and above 0."""
        size = norm(x)
        mean, std = moments.to(size)
        low, high = (mean - self.detect * std).clamp(min=0), mean + self.detect * std
        return x * broadcast(size.clamp(low, high) / size.clamp(min=torch.finfo(size.dtype).tiny)).to(x)


def _z(size: Tensor, moments: Tensor) -> Tensor:
    mean, std = moments.to(size)
    return (size - mean) / std.clamp(min=torch.finfo(size.dtype).tiny)
