"""How alike a picture and its nearest training picture are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

SANE = 1e3
"""Largest pixel value whose σ must be finite; images lie in [−1, 1]."""


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


def check_finite(similarity: Tensor, images: Tensor) -> None:
    """Refuses a σ that is not finite although its image is: NaN is never above a threshold, so it would pass as safe.

    Args:
        similarity: σ, (B,).
        images: that it was computed of, (B, 3, H, W). Rows far outside [−1, 1], as of a diverging trajectory, may have
            any σ.
    Raises:
        ValueError: with the first such row.
    """
    sane = (images.abs() <= SANE).flatten(1).all(1)  # false for NaN
    if (wrong := ~similarity.isfinite() & sane.to(similarity.device)).any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"similarity: σ of row {row} is {similarity[row].item()}, so it cannot be compared with λ_t")
