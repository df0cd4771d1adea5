"""The paper's greedy deduplication of the training images that nL2 refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from amg.bank.cache import cache_folder, write_array
from amg.bank.exact import nearest, square_norms
from amg.tensors import floats

if TYPE_CHECKING:
    from amg.bank.bank import TrainingBank

MARGIN = 1e-3
"""Closer than this to the threshold, a distance of the matrix products is computed again in float64."""


def dedupe(
    bank: TrainingBank,
    threshold: float = 1.0,
    k: int = 50,
    scale: float = 0.5,
    cache: str | Path | None = None,
) -> TrainingBank:
    """Drops near-copies among the training images, so that they do not shrink the k-NN mean of Eq. 8.

    In the bank's order, an image goes if its own nL2 distance to the others still there is below the threshold:
    ℓ2(n, n0) < threshold · scale · mean of ℓ2(n, z) over its k nearest z, n0 among them. So the last of a group of
    near-copies stays.

    Args:
        bank: N > k images.
        threshold: the paper's 1.0.
        k, scale: those of `NormalizedL2`.
        cache: folder for the answer, named by a hash of images and settings; default $AMG_CACHE or ~/.cache/amg.
    """
    return bank.subset(reference(bank, threshold, k, scale, cache)[0])


def reference(
    bank: TrainingBank,
    threshold: float = 1.0,
    k: int = 50,
    scale: float = 0.5,
    cache: str | Path | None = None,
    on_block: Callable[[int], None] | None = None,
) -> tuple[Tensor, Path]:
    """Indices of the images that `dedupe` leaves, ascending, and the file that keeps them.

    Args:
        on_block: told how many images' neighbours were found, block by block; not called where the file is there.
    """
    if len(bank) <= k:
        raise ValueError(f"deduplication needs more than k={k} distinct images, the bank has {len(bank)}")
    settings = f"{bank.digest()} {threshold} {k} {scale}"
    name = hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
    file = cache_folder(cache) / f"dedupe-{name}.npy"
    if file.is_file():
        with suppress(ValueError, EOFError):  # cut off: made anew
            return torch.from_numpy(np.load(file, allow_pickle=False)), file
    kept = kept_pictures(floats(bank.pixels()), threshold, k, scale, on_block=on_block)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_array(file, [kept.numpy()])
    return kept, file


def kept_pictures(
    pixels: Tensor,
    threshold: float = 1.0,
    k: int = 50,
    scale: float = 0.5,
    block: int = 1024,
    spare: int = 30,
    on_block: Callable[[int], None] | None = None,
) -> Tensor:
    """Indices of the images that the greedy pass leaves, ascending; see `dedupe`.

    Args:
        pixels: (N, D).
        block: queries per search.
        spare: neighbours looked up beyond k, so that dropped ones seldom call for another search.
        on_block: told the size of each block that was searched.
    """
    distances, indices = _neighbours(pixels, min(k + spare, len(pixels) - 1), block, on_block)
    there = torch.ones(len(pixels), dtype=torch.bool)
    for i in range(len(pixels)):
        if there.sum() <= k:
            break  # no k neighbours are left to compare with
        left = there[indices[i]]
        candidates, near = indices[i][left], distances[i][left][:k]
        if len(near) < k:
            candidates = there.nonzero().flatten()
            near = _exact(pixels, i, candidates)[:k]
        ratio = near[0] / (scale * near.mean())
        if abs(ratio - threshold) < MARGIN * max(threshold, 1):
            near = _exact(pixels, i, candidates)[:k]
            ratio = near[0] / (scale * near.mean())
        there[i] = bool(ratio >= threshold)
    return there.nonzero().flatten()


def _neighbours(pixels: Tensor, k: int, block: int, on_block: Callable[[int], None] | None) -> tuple[Tensor, Tensor]:
    """Distances and indices of each image's k nearest others, ascending, (N, k)."""
    pixels = pixels - pixels.mean(0)  # smaller norms cancel fewer digits
    norms = square_norms(pixels)
    distances, indices = [], []
    for start in range(0, len(pixels), block):
        near, places = nearest(pixels[start : start + block], pixels, norms, k + 1)
        own = torch.arange(start, start + len(near), device=places.device)[:, None]
        near, order = near.masked_fill(places == own, torch.inf).topk(k, dim=1, largest=False)
        distances.append(near.cpu())
        indices.append(places.gather(1, order).cpu())
        if on_block is not None:
            on_block(len(near))
    return torch.cat(distances), torch.cat(indices)


def _exact(pixels: Tensor, i: int, candidates: Tensor) -> Tensor:
    """Ascending float64 distances from image i to the candidates but itself."""
    others = candidates[candidates != i].to(pixels.device)
    own = pixels[i].double()
    parts = [torch.linalg.vector_norm(pixels[some].double() - own, dim=1) for some in others.split(4096)]
    return torch.cat(parts).sort().values.cpu()


def clusters(
    vectors: Tensor, index: Any, above: float, k: int = 16, on_block: Callable[[int], None] | None = None
) -> list[tuple[list[int], list[float]]]:
    """Groups of vectors that a chain of cosines above a threshold connects, the largest group first.

    Args:
        vectors: (N, D), of unit length; 0 for none.
        index: searches them.
        k: neighbours of each that are looked at.
        on_block: told how many were compared, block by block.
    Returns:
        for each group its members, ascending, and the cosine of each to the first.
    """
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for start in range(0, len(vectors), 1024):
        queries = vectors[start : start + 1024].float()
        values, places = index.search(queries, min(k + 1, len(vectors)))
        own = torch.arange(start, start + len(queries), device=places.device)[:, None]
        for row, column in ((values > above) & (places != own)).nonzero().tolist():
            one, other = root(start + row), root(int(places[row, column]))
            parent[max(one, other)] = min(one, other)
        if on_block is not None:
            on_block(len(queries))
    groups: dict[int, list[int]] = {}
    for i in sorted(parent):
        groups.setdefault(root(i), []).append(i)
    found = sorted((some for some in groups.values() if len(some) > 1), key=lambda some: (-len(some), some))
    return [(some, (vectors[some].float() @ vectors[some[0]].float()).tolist()) for some in found]
