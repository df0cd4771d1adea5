"""Σ of p(x_{t−1} | x_t) where the network predicts it (Nichol & Dhariwal, 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def posterior_variance(scheduler: Any, timestep: Tensor | int, channels: Tensor) -> Tensor:
    """The learned variance of one step: log Σ = v log β_t + (1 − v) log β̃_t, v = (channels + 1) / 2.

    β_t and β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t) are those of the scheduler's own, perhaps respaced, timesteps. At the
    last step β̃ is 0; as in improved-diffusion it is replaced by that of the step before.

    Args:
        scheduler: its timesteps are set; variance_type `learned_range`, or `learned` where the channels are Σ itself.
        timestep: one of its timesteps.
        channels: the network's variance channels, (B, C, H, W).
    Returns:
        Σ, (B, C, H, W).
    """
    if scheduler.config.variance_type == "learned":
        return channels
    place = int((scheduler.timesteps == int(timestep)).nonzero()[0])
    beta, _ = _bounds(scheduler, place)
    _, tilde = _bounds(scheduler, min(place, max(len(scheduler.timesteps) - 2, 0)))
    share = (channels + 1) / 2
    return torch.exp(share * beta.log().to(channels) + (1 - share) * tilde.log().to(channels))


def _bounds(scheduler: Any, place: int) -> tuple[Tensor, Tensor]:
    """β and β̃ of the step at that place of the chain, float64."""
    timesteps, one = scheduler.timesteps, torch.ones((), dtype=torch.float64)
    now = scheduler.alphas_cumprod[timesteps[place]].double()
    before = scheduler.alphas_cumprod[timesteps[place + 1]].double() if place + 1 < len(timesteps) else one.to(now)
    beta = 1 - now / before
    return beta, beta * (1 - before) / (1 - now)
