"""Similarity of an image to its nearest training image."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from amg.tensors import broadcast

SANE = 1e3
"""Largest pixel value whose σ must be finite; images lie in [−1, 1]."""


class Match(NamedTuple):
    """The nearest training image of each of B images."""

    value: Tensor
    """σ, (B,); larger is more alike."""
    index: Tensor
    """Index in the bank, (B,)."""


class Similarity(Protocol):
    """Images (B, 3, H, W) in [−1, 1] to a `Match`; differentiable in the images, the neighbour held fixed.

    A plain function serves too. `copy` and `strict` are the values beyond which an image counts as memorized;
    `neighbours(images, k)` lists the k nearest training images, for those who count their captions. One that searches
    an approximate index says so by `remembers` and takes `near`, (B,): the neighbours of the step before, which are
    candidates beside those of the index.
    """

    def __call__(self, images: Tensor) -> Match: ...


def measure(similarity: Similarity, images: Tensor, near: Tensor | None = None) -> Match:
    """σ of the images to their nearest training images; NaN for images that are not finite or far outside [−1, 1].

    Args:
        images: (B, 3, H, W) in [−1, 1].
        near: neighbours of the step before, (B,), for a similarity that `remembers`.
    Raises:
        ValueError: where σ of a finite image is not finite: no threshold would flag it.
    """
    finite = (images.abs() <= SANE).flatten(1).all(1)  # false for NaN
    known = {"near": near} if near is not None and getattr(similarity, "remembers", False) else {}
    match = similarity(images if finite.all() else torch.where(broadcast(finite), images, 0), **known)
    finite = finite.to(match.value.device)
    broken = finite & ~match.value.isfinite()
    if broken.any():
        name, row = getattr(similarity, "__name__", type(similarity).__name__), int(broken.nonzero()[0])
        raise ValueError(
            f"similarity {name} is {match.value[row].item()} for a finite image (row {row}), which no threshold flags: "
            "check its bank and weights"
        )
    return match if finite.all() else match._replace(value=match.value.where(finite, torch.nan))


def require_shape(images: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses images (B, C, H, W) of another shape than the bank's, (C, H, W), by ValueError."""
    if tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images are {tuple(images.shape[1:])} but the bank's {shape}: "
            f"load the bank with size={tuple(images.shape[2:])}"
        )


@torch.no_grad()
def exactly(similarity: Similarity, images: Tensor) -> Match:
    """σ by exact search, also where guidance searches an index: what is reported of finished images."""
    if not hasattr(similarity, "training"):
        return similarity(images)
    values, index = similarity.nearest(images)
    return Match(values[:, 0], index[:, 0])


def by_descriptor(similarity: Similarity) -> list[Any]:
    """The similarities by descriptors that one is made of: itself, its stages, or none."""
    return [stage for stage in getattr(similarity, "stages", (similarity,)) if hasattr(stage, "training")]
