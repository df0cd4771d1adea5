"""No text before a transition point that each chain finds for itself ("DTP", Jain et al., CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.cfg import with_scale
from amg.step import Step


@dataclass(frozen=True)
class TransitionState:
    """What a chain has seen; one row per sample."""

    norm: Tensor
    """d_t = ‖ε(x_t, y) − ε(x_t)‖₂ of this step, (B,)."""
    last: Tensor
    """That of the step before, (B,); NaN at the first."""
    reached: Tensor
    """Whether the transition point has been reached, (B,) bool; it stays so."""


class DynamicTransitionPoint(Guidance):
    """CFG scale 0, i.e. unconditional, up to the first local minimum of d_t = ‖ε(x_t, y) − ε(x_t)‖; then the usual one.

    The minimum d_{i−2} > d_{i−1} < d_i is known at step i, which is the first with the usual scale. A chain whose d_t
    has no minimum stays unconditional.

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
        norm = torch.linalg.vector_norm((step.eps_cond - step.eps_uncond).to(step.alpha_bar).flatten(1), dim=1)
        if state is None:
            unknown = torch.full_like(norm, torch.nan)  # no comparison with it is true
            state = TransitionState(unknown, unknown, torch.zeros_like(norm, dtype=torch.bool))
        minimum = (state.last > state.norm) & (state.norm < norm)
        state = TransitionState(norm, state.norm, state.reached | minimum)
        return with_scale(step, self.before, ~state.reached), state
