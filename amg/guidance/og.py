"""Away from the text before a transition point ("opposite guidance", Jain et al., CVPR 2025)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.dtp import DynamicTransitionPoint
from amg.guidance.stp import StaticTransitionPoint
from amg.step import Step


class OppositeGuidance(Guidance):
    """CFG scale −scale up to the transition point, so that the chain leaves the basin of attraction; then as usual.

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
