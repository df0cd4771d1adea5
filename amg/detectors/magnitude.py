"""Distance by which the prompt moves the noise prediction (Wen et al., 2024)."""

from __future__ import annotations

from torch import Tensor

from amg.detectors.base import Detector, direction
from amg.step import Step
from amg.tensors import norm


class Magnitude(Detector):
    """‖ε(x_t, y) − ε(x_t)‖₂ at the first step, or its mean over all steps.

    Args:
        whole: takes the mean over the whole trajectory; else one look at pure noise suffices.
    """

    needs_prompts = True

    def __init__(self, whole: bool = False):
        self.noise, self.chain = ((), slice(None)) if whole else ((0,), slice(0))

    def see(self, step: Step, after: Tensor | None) -> Tensor:
        return norm(direction(step, "magnitude"))[:, None]

    def score(self, seen: Tensor) -> Tensor:
        return seen[:, :, 0].mean(1)
