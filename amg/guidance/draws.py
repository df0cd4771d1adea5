"""Randomness of a method, apart from that of the chain it is used on."""

import random

import torch


def words_of(method: str, seed: int) -> random.Random:
    """A generator that depends on method and seed alone; equal seeds of two methods are unrelated."""
    return random.Random(f"{method} {seed}")


def noise_of(method: str, seed: int) -> torch.Generator:
    """The same for tensors, on the CPU. Seeding it with `seed` itself would repeat the chain's first noise."""
    return torch.Generator().manual_seed(words_of(method, seed).getrandbits(63))
