"""Subtraction of the references' mean from x̂0 (Safe Denoiser, Kim et al., NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amg.guidance.rivals.references import Repulsion, distances


class SafeDenoiser(Repulsion):
    """Subtracts a weighted mean of the references from x̂0 while t >= until, as the authors' code does:

        x̂0 ← x̂0 − scale Σ_k w_k z_k,   w_k = K_k / Σ_j K_j,   K_k = exp(−‖x̂0 − z_k‖ / 2 sigma²)

    where Σ_k K_k > least. The paper's exact rule is D + β* (D − D_unsafe); `amg.worlds.oracle` has it where the law is
    known. The code noises x_t anew from the new x̂0; here x_t stays, and ε follows x̂0.

    Args:
        references: (N, C, H, W) in the space of the samples; see `amg.guidance.rivals.references.of_bank`.
        sigma: width of the kernel, > 0; 2 sigma² is a distance, not its square. The authors' value for a memorized
            face, in latents of 4 × 64 × 64; 3.15 for nudity. Untuned elsewhere.
        scale: the authors' value for the face; 0.33 for nudity.
        least: the authors' beta_threshold; 0 acts always.
        until: the authors' 780 of 1,000.
    """

    def __init__(
        self,
        references: Tensor,
        sigma: float = 13.15,
        scale: float = 0.69,
        least: float = 1e-9,
        until: float = 0.78,
    ):
        super().__init__(references, scale, until)
        if not sigma > 0:
            raise ValueError(f"guidance.sigma must be > 0, got {sigma}")
        if not least >= 0:
            raise ValueError(f"guidance.least must be >= 0, got {least}")
        self.sigma, self.least = sigma, least

    def force(self, x0: Tensor, references: Tensor, seeds: Sequence[int]) -> Tensor:
        logits = -distances(x0, references) / (2 * self.sigma**2)
        near = logits.exp().sum(1, keepdim=True) > self.least
        return torch.where(near, -torch.softmax(logits, dim=1) @ references, 0)
