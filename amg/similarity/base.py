"""How alike a picture and its nearest training picture are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Match(NamedTuple):
    """The nearest training picture of each of B pictures."""

    value: Tensor
    """σ, (B,); larger is more alike."""
    index: Tensor
    """Index in the bank, (B,)."""


class Similarity(Protocol):
    """Pictures (B, 3, H, W) in [−1, 1] to a `Match`; differentiable in the pictures, the neighbour held fixed.

    A plain function serves too. `copy` and `strict` are the values beyond which a picture counts as memorized;
    `neighbours(images, k)` lists the k nearest training pictures, for those who count their captions.
    """

    def __call__(self, images: Tensor) -> Match: ...
