"""Another scale of classifier-free guidance for some samples: what the CFG-schedule methods have in common."""

from __future__ import annotations

from torch import Tensor

from amg.step import Step


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
