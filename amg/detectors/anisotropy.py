"""Norm where the log-probability is isotropic, angle where it is not (Asthana & Belagiannis, 2026)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.detectors.base import Detector, direction
from amg.step import Step
from amg.tensors import norm


class Anisotropy(Detector):
    """γ_norm ‖Δε‖₂ at t ≈ T plus γ_cos cos(ε(x), Δε) at t ≈ 0, both at pure noise, Δε = ε(x, y) − ε(x).

    As the authors' code has it: the norm is of Δε, not of the score's difference −Δε / √(1−ᾱ) (at t ≈ T they are the
    same); the cosine, which the change of sign leaves as it is, runs over the channels of each pixel and is averaged;
    the second look is at the last place but two of the schedule. Two looks, no denoising.

    Args:
        gamma_norm, gamma_cos: the code's weights for Stable Diffusion 1; for 2 it has 1 and 0.1. Untuned elsewhere:
            the norm grows with √(C·H·W), the cosine does not.
    """

    needs_prompts = True
    noise = (0, -3)

    def __init__(self, gamma_norm: float = 1.0, gamma_cos: float = 2.0):
        self.gamma_norm, self.gamma_cos = gamma_norm, gamma_cos

    def see(self, step: Step, after: Tensor | None) -> Tensor:
        change = direction(step, "anisotropy")
        cosine = F.cosine_similarity(step.eps_uncond.float(), change.float(), dim=1).flatten(1).mean(1)
        return torch.stack([norm(change).float(), cosine], dim=1)

    def score(self, seen: Tensor) -> Tensor:
        return self.gamma_norm * seen[:, 0, 0] + self.gamma_cos * seen[:, 1, 1]
