"""No text before a fixed transition point ("STP", Jain et al., CVPR 2025)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.cfg import with_scale
from amg.step import Step


class StaticTransitionPoint(Guidance):
    """CFG scale 0, i.e. unconditional, while t > until; the usual scale from there on.

    A memorized prompt draws every chain to its picture at first; a chain that has left that basin of attraction before
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
