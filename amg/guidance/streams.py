"""Random numbers of one method and one sample: they depend on the method's name and the sample's seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from amg.tensors import broadcast, norm


def words_of(method: str, seed: int) -> random.Random:
    """Returns a generator that depends on method and seed alone; equal seeds of two methods are unrelated."""
    return random.Random(f"{method} {seed}")


def noise_of(method: str, seed: int) -> torch.Generator:
    """Returns the same for tensors, on the CPU. Seeding it with `seed` itself would repeat the trajectory's x_T."""
    return torch.Generator().manual_seed(words_of(method, seed).getrandbits(63))


def own_direction(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Returns a random direction of unit length for each seed, the same at every step, (B, C, H, W).

    A repulsion takes it at an exact copy, where its formula has none. It is independent of x_T: noise along x_T itself
    would bring x_t nearer to the copy.

    Args:
        like: (B, C, H, W) or more rows; gives shape, dtype and device.
    """
    noise = [torch.randn(like.shape[1:], generator=noise_of("direction", seed)) for seed in seeds]
    direction = torch.stack(noise)
    return (direction / broadcast(norm(direction))).to(like)
