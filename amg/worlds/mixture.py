"""A mixture of point masses and low-rank Gaussians, whose diffusion is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Mixture:
    """P points and G Gaussians N(μ_g, V_gᵀ diag(λ_g) V_g + τ² I) in D dimensions, in that order: K = P + G components.

    All is batched over components by two matrix products with the stacked directions (G·R, D): nothing of size
    B × G × D is ever made.

    Args:
        points: (P, D).
        means: (G, D).
        directions: orthonormal rows, zero rows where a Gaussian has fewer than R, (G, R, D).
        variances: λ along them, 0 for zero rows, (G, R).
        rest: τ², the variance in every direction, > 0.
    """

    def __init__(self, points: Tensor, means: Tensor, directions: Tensor, variances: Tensor, rest: float):
        self.points, self.means, self.variances, self.rest = points, means, variances, rest
        self.directions = directions.flatten(0, 1)
        self.centers = torch.cat([points, means])
        self._square_norms = self.centers.square().sum(1)
        self._projected_means = (directions @ means[:, :, None]).squeeze(2)  # V_g μ_g, (G, R)

    def __len__(self) -> int:
        return len(self.centers)

    def log_density(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """log p_t(x_t | component), up to one constant for all, (B, K).

        Args:
            x_t: (B, D).
            alpha_bar: ᾱ_t in [0, 1], (B,); at 1 a point's density is that of a noise variance of 1e-12.
        """
        return self._log_density(x_t, alpha_bar, self._project(x_t, alpha_bar))

    def posterior_mean(self, x_t: Tensor, alpha_bar: Tensor, log_weights: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, D): the softmax of weighted densities times each component's own posterior mean.

        Args:
            log_weights: log p(component), (B, K) or (K,); −∞ leaves a component out.
        """
        projected = self._project(x_t, alpha_bar)
        responsibility = torch.softmax(log_weights + self._log_density(x_t, alpha_bar, projected), dim=1)
        points = len(self.points)
        gaussian = responsibility[:, points:]
        signal = alpha_bar.sqrt()[:, None]
        noise = (1 - alpha_bar).clamp(min=1e-12)[:, None]
        # E[x_0 | x_t, g] = μ + τ²√ᾱ/(ᾱτ²+v) z + Σ_r (gain_r − τ²√ᾱ/(ᾱτ²+v)) (V_r·z) V_r,  z = x_t − √ᾱ μ
        along = signal[:, :, None] * (self.variances + self.rest)
        along = along / (signal[:, :, None] * along + noise[:, :, None])  # gain of each direction, (B, G, R)
        across = signal * self.rest / (signal**2 * self.rest + noise)  # gain of all others, (B, 1)
        weights = torch.cat([responsibility[:, :points], gaussian * (1 - across * signal)], dim=1)
        steps = gaussian[:, :, None] * (along - across[:, :, None]) * projected
        return (
            weights @ self.centers + gaussian.sum(1, keepdim=True) * across * x_t + steps.flatten(1) @ self.directions
        )

    def draw(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """Exact samples of the given components, (n,) to (n, D)."""
        gaussian = component >= len(self.points)
        x = self.centers[component].clone()
        which = component[gaussian] - len(self.points)
        rank = self.variances.shape[1]
        like = {"dtype": x.dtype, "generator": generator}
        step = torch.randn(len(which), rank, **like) * self.variances[which].sqrt()
        directions = self.directions.view(-1, rank, x.shape[1])
        noise = torch.randn(len(which), x.shape[1], **like) * self.rest**0.5
        x[gaussian] += torch.einsum("nr,nrd->nd", step, directions[which]) + noise
        return x

    def _project(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """V_g (x_t − √ᾱ μ_g), (B, G, R)."""
        projected = (x_t @ self.directions.T).view(len(x_t), *self.variances.shape)
        return projected - alpha_bar.sqrt()[:, None, None] * self._projected_means

    def _log_density(self, x_t: Tensor, alpha_bar: Tensor, projected: Tensor) -> Tensor:
        signal = alpha_bar.sqrt()[:, None]
        noise = (1 - alpha_bar).clamp(min=1e-12)[:, None]
        square = (
            x_t.square().sum(1, keepdim=True) - 2 * signal * (x_t @ self.centers.T) + signal**2 * self._square_norms
        )
        points, dimension = len(self.points), x_t.shape[1]
        point = -0.5 * (square[:, :points] / noise + dimension * noise.log())
        across = signal**2 * self.rest + noise  # variance outside the directions, (B, 1)
        along = (signal**2)[:, :, None] * self.variances + across[:, :, None]  # and along them, (B, G, R)
        inside = (projected.square() * (1 / across[:, :, None] - 1 / along)).sum(2)
        volume = dimension * across.log() + (along.log() - across[:, :, None].log()).sum(2)
        gaussian = -0.5 * (square[:, points:] / across - inside + volume)
        # an alpha_bar of 1 gives huge but finite numbers; the constant 2π is the same for all
        return torch.cat([point, gaussian], dim=1) - 0.5 * dimension * math.log(2 * math.pi)
