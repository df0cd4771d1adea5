"""The white-box score of one step (Webster, 2023)."""

from __future__ import annotations

from torch import Tensor

from amg.detectors.base import Detector
from amg.step import Step
from amg.tensors import norm


class OneStep(Detector):
    """Mean square of x̂0 − x_T/√ᾱ_T: how far one step to the end goes from its noise ("denoising confidence score").

    x_T/√ᾱ_T is the noise as a variance-exploding sampler has it, which the author's code uses (one Heun step from the
    largest Karras σ to 0 is one Euler step). The difference is √((1−ᾱ_T)/ᾱ_T) ε, ε after classifier-free guidance:
    so the score is the square norm of the guided noise prediction, and needs no text.
    """

    noise = (0,)

    def see(self, step: Step, after: Tensor | None) -> Tensor:
        odds = (1 - step.alpha_bar) / step.alpha_bar
        return (odds * norm(step.eps) ** 2 / step.eps[0].numel())[:, None]

    def score(self, seen: Tensor) -> Tensor:
        return seen[:, 0, 0]
