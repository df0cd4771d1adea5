"""Ascent of the maximum mean discrepancy to reference images (Safety-Guided Flow, Kim et al., ICLR 2026)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amg.guidance.rivals.references import Repulsion, away, distances, spacing


class SafetyGuidedFlow(Repulsion):
    """Moves x̂0 up the gradient of MMD², with a Gaussian kernel, to the references while t >= until:

        x̂0 ← x̂0 + scale Σ_k K_k (x̂0 − z_k),   K_k = exp(−‖x̂0 − z_k‖² / 2 sigma²)

    That is λ ∇MMD²(x̂0, Z) = (2 λ / N sigma²) Σ_k K_k (x̂0 − z_k), the equation of the paper, with its factors in
    `scale`. The authors' code has the other sign, which attracts, and noises x_t anew; here x_t stays, and ε follows
    x̂0. At x̂0 = z_k with no other reference in reach the gradient is 0, and so is the push.

    Args:
        references: (N, C, H, W) in the space of the samples; see `amg.guidance.rivals.references.of_bank`.
        sigma: width of the kernel, > 0, in the ℓ2 norm of the space. None, ours: half the median distance of a
            reference to its nearest other; the code takes a median over the batch, on which no sample here depends.
        scale: 2 λ / N sigma², constant in the window; a sample much nearer than sigma to one reference multiplies its
            distance by 1 + scale. Ours, untuned.
        until: the paper's window [1, 0.8].
    """

    def __init__(self, references: Tensor, sigma: float | None = None, scale: float = 1.0, until: float = 0.8):
        super().__init__(references, scale, until)
        if sigma is not None and not sigma > 0:
            raise ValueError(f"guidance.sigma must be > 0, got {sigma}")
        self.sigma = spacing(references) / 2 if sigma is None else sigma

    def force(self, x0: Tensor, references: Tensor, seeds: Sequence[int]) -> Tensor:
        kernel = (-(distances(x0, references).square()) / (2 * self.sigma**2)).exp()
        return away(x0, references, kernel)
