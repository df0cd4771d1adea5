"""A mixture of point masses and low-rank Gaussians, whose diffusion is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEGLIGIBLE = 1e-30
"""Responsibility below which a component adds nothing to a mean, even in float64."""


class Mixture:
    """P points and G Gaussians, in that order: K = P + G components over images of C channels of D pixels.

    The channels of a Gaussian are independent: channel c is N(μ_c, V_cᵀ diag(λ_c) V_c + τ² I). So its directions take
    C·R·D numbers where those of a whole image would take C times as many.

    Args:
        points: (P, C, D).
        means: (G, C, D).
        directions: R orthonormal rows for each channel, zero rows where a Gaussian has fewer, (G, C, R, D).
        variances: λ along them, 0 for zero rows, (G, C, R).
        rest: τ², the variance in every direction, > 0.
    """

    def __init__(self, points: Tensor, means: Tensor, directions: Tensor, variances: Tensor, rest: float):
        gaussians, channels, rank, pixels = directions.shape
        self.rest, self.variances = rest, variances
        self.centers = torch.cat([points, means]).flatten(1)  # (K, C·D)
        self.directions = directions.permute(1, 0, 2, 3).reshape(channels, gaussians * rank, pixels)
        self._square_norms = self.centers.square().sum(1)
        self._projected_means = torch.einsum("gcrd,gcd->gcr", directions, means)

    def __len__(self) -> int:
        return len(self.centers)

    @property
    def points(self) -> int:
        """Number of point masses: components below it are points."""
        return len(self.centers) - len(self.variances)

    def log_density(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """Returns log p_t(x_t | component), (B, K).

        Args:
            x_t: (B, C, D).
            alpha_bar: ᾱ_t in [0, 1], (B,); at 1 a point's density is that of a noise variance of 1e-12.
        """
        return self._log_density(x_t, alpha_bar, self._project(x_t, alpha_bar))

    def posterior_mean(self, x_t: Tensor, alpha_bar: Tensor, log_weights: Tensor) -> Tensor:
        """Returns E[x_0 | x_t], (M·B, C, D): each component's posterior mean, weighted by its responsibility.

        Args:
            log_weights: log p(component), (M·B, K): M conditions for each row of x_t, since their densities are shared
                (classifier-free guidance asks for two); −∞ leaves a component out.
        """
        projected = self._project(x_t, alpha_bar)
        density = self._log_density(x_t, alpha_bar, projected)
        repeats = len(log_weights) // len(x_t)
        weight = torch.softmax(log_weights + density.repeat(repeats, 1), dim=1)
        kept = (weight > NEGLIGIBLE).any(0)  # late in a trajectory a handful of components is left of thousands
        signal, noise = _levels(alpha_bar)
        along = signal[:, None, None, None] * (self.variances + self.rest)
        along = along / (signal[:, None, None, None] * along + noise[:, None, None, None])  # gain of each direction
        across = signal * self.rest / (signal**2 * self.rest + noise)  # gain of all other directions, (B,)
        # E[x_0 | x_t, g] = μ + across z + Σ_r (along_r − across) (V_r·z) V_r with z = x_t − √ᾱ μ
        steps = (along - across[:, None, None, None]) * projected
        x_t, signal, across = x_t.repeat(repeats, 1, 1), signal.repeat(repeats), across.repeat(repeats)
        gaussian = weight[:, self.points :]
        pull = torch.cat([weight[:, : self.points], gaussian * (1 - across * signal)[:, None]], dim=1)
        mean = (pull[:, kept] @ self.centers[kept]).view_as(x_t)
        mean = mean + (gaussian.sum(1) * across)[:, None, None] * x_t
        kept = kept[self.points :].nonzero().flatten()
        steps = gaussian[:, kept, None, None] * steps[:, kept].repeat(repeats, 1, 1, 1)
        rank = self.variances.shape[2]
        rows = (kept[:, None] * rank + torch.arange(rank, device=kept.device)).flatten()
        return mean + torch.bmm(steps.permute(2, 0, 1, 3).flatten(2), self.directions[:, rows]).transpose(0, 1)

    def sample(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """Samples the given components exactly, (n,) to (n, C, D)."""
        channels, _, pixels = self.directions.shape
        rank = self.variances.shape[2]
        x = self.centers[component].view(-1, channels, pixels).clone()
        gaussian = component >= self.points
        which = component[gaussian] - self.points
        like = {"dtype": x.dtype, "generator": generator}
        step = torch.randn(len(which), channels, rank, **like) * self.variances[which].sqrt()
        directions = self.directions.view(channels, -1, rank, pixels)[:, which]
        noise = torch.randn(len(which), channels, pixels, **like) * self.rest**0.5
        x[gaussian] += torch.einsum("ncr,cnrd->ncd", step, directions) + noise
        return x

    def _project(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """Returns V (x_t − √ᾱ μ), (B, G, C, R)."""
        projected = torch.bmm(x_t.transpose(0, 1), self.directions.transpose(1, 2))  # (C, B, G·R)
        projected = projected.view(len(self.directions), len(x_t), -1, self.variances.shape[2]).permute(1, 2, 0, 3)
        return projected - alpha_bar.sqrt()[:, None, None, None] * self._projected_means

    def _log_density(self, x_t: Tensor, alpha_bar: Tensor, projected: Tensor) -> Tensor:
        signal, noise = (level[:, None] for level in _levels(alpha_bar))
        flat = x_t.flatten(1)
        square = flat.square().sum(1, keepdim=True) - 2 * signal * (flat @ self.centers.T)
        square = square + signal**2 * self._square_norms
        dimension = flat.shape[1]
        point = -0.5 * (square[:, : self.points] / noise + dimension * noise.log())
        across = signal**2 * self.rest + noise  # variance outside the directions, (B, 1)
        ratio = (signal**2)[:, :, None, None] * self.variances / across[:, :, None, None]  # along them, less that
        inside = (projected.square() * (ratio / (1 + ratio))).sum((2, 3))
        volume = dimension * across.log() + ratio.log1p().sum((2, 3))
        gaussian = -0.5 * ((square[:, self.points :] - inside) / across + volume)
        return torch.cat([point, gaussian], dim=1) - 0.5 * dimension * math.log(2 * math.pi)


def _levels(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Returns √ᾱ and the noise variance 1 − ᾱ, which stays positive at ᾱ = 1."""
    return alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=1e-12)
