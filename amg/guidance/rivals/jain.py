"""Schedules of the CFG scale that keep the text out at first (Jain et al., CVPR 2025): STP, DTP, opposite guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.step import Step
from amg.tensors import norm


def with_scale(step: Step, scale: float, rows: Tensor) -> Tensor:
    """ε with `scale` in place of s0: ε + (scale − s0)(ε(x_t, y) − ε(x_t)), so that 0 is the unconditional prediction.

    Args:
        scale: in the convention of Eq. 7; below 0 it points away from the condition.
        rows: which samples, (B,) bool; the others keep their bits.
    Returns:
        (B, C, H, W); `step.eps` itself where there is nothing to do, e.g. no CFG.
    """
    if step.eps_cond is None or scale == step.s0 or not rows.any():
        return step.eps
    places = rows.nonzero().flatten()
    delta = step.eps_cond[places] - step.eps_uncond[places]
    return step.eps.index_put((places,), step.eps[places] + (scale - step.s0) * delta)


class StaticTransitionPoint(Guidance):
    """CFG scale 0, i.e. unconditional, while t > until; the usual scale from there on.

    A memorized prompt draws every trajectory to its image at first. One that has left that basin of attraction before
    the text comes in does not fall back.

    Args:
        until: the transition point, a fraction of the schedule in [0, 1]; 1 is plain CFG. The authors' 500 of 1,000,
            for a Stable Diffusion 2.1 that they fine-tuned.
        before: the scale before it, in the convention of Eq. 7.
    """

    needs_cfg = True

    def __init__(self, until: float = 0.5, before: float = 0.0):
        if not 0 <= until <= 1:
            raise ValueError(f"guidance.until must lie in [0, 1], got {until}")
        self.until, self.before = until, before

    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        return with_scale(step, self.before, step.t > self.until), state


@dataclass(frozen=True)
class TransitionState:
    """State of a trajectory; one row per sample."""

    norm: Tensor
    """d_t = ‖ε(x_t, y) − ε(x_t)‖₂ of this step, (B,)."""
    last: Tensor
    """d_t of the step before, (B,); NaN at the first."""
    reached: Tensor
    """True if the transition point has been reached, (B,) bool; it stays so."""


class DynamicTransitionPoint(Guidance):
    """CFG scale 0, i.e. unconditional, up to the first local minimum of d_t = ‖ε(x_t, y) − ε(x_t)‖; then the usual one.

    The minimum d_{i−2} > d_{i−1} < d_i is known at step i, which is the first with the usual scale. A trajectory whose
    d_t has no minimum stays unconditional.

    Args:
        before: the scale before the transition point, in the convention of Eq. 7. The authors' text: 0; the code that
            they released: 1.
    """

    needs_cfg = True

    def __init__(self, before: float = 0.0):
        self.before = before

    def __call__(self, step: Step, state: TransitionState | None) -> tuple[Tensor, TransitionState | None]:
        if step.eps_cond is None:
            return step.eps, None
        distance = norm((step.eps_cond - step.eps_uncond).to(step.alpha_bar))
        if state is None:
            unknown = torch.full_like(distance, torch.nan)  # no comparison with it is true
            state = TransitionState(unknown, unknown, torch.zeros_like(distance, dtype=torch.bool))
        minimum = (state.last > state.norm) & (state.norm < distance)
        state = TransitionState(distance, state.norm, state.reached | minimum)
        return with_scale(step, self.before, ~state.reached), state


class OppositeGuidance(Guidance):
    """CFG scale −scale up to the transition point, to leave the basin of attraction; then as usual.

    Args:
        scale: >= 0; 0 is the transition point alone. The authors' 2 with stp; 1, 3, 5, 7 or 9 with dtp.
        switch: `stp` or `dtp`: how the transition point is found.
        until: of stp: a fraction of the schedule in [0, 1]. The authors' 650 of 1,000.
    """

    needs_cfg = True

    def __init__(self, scale: float = 2.0, switch: str = "stp", until: float = 0.65):
        if not scale >= 0:
            raise ValueError(f"guidance.scale must be >= 0, got {scale}")
        if switch not in ("stp", "dtp"):
            raise ValueError(f"guidance.switch must be stp or dtp, got {switch!r}")
        static = switch == "stp"
        self.transition = StaticTransitionPoint(until, -scale) if static else DynamicTransitionPoint(-scale)

    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        return self.transition(step, state)
