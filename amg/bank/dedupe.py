"""The paper's greedy deduplication of the training pictures that nL2 refers to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amg.bank.bank import TrainingBank
from amg.bank.exact import nearest

MARGIN = 1e-3
"""Closer than this to the threshold, a distance of the matrix products is computed again in float64."""


def dedupe(
    bank: TrainingBank,
    threshold: float = 1.0,
    k: int = 50,
    scale: float = 0.5,
    cache: str | Path | None = None,
    block: int = 1024,
) -> TrainingBank:
    """Drops near-copies among the training pictures, so that they do not shrink the k-NN mean of Eq. 8.

    In the bank's order, a picture goes if its own nL2 distance to the others still there is below the threshold:
    ℓ2(n, n0) < threshold · scale · mean of ℓ2(n, z) over its k nearest z, n0 among them. So the last of a group of
    near-copies stays.

    Args:
        bank: N > k pictures.
        threshold: the paper's 1.0.
        k, scale: those of `NormalizedL2`.
        cache: folder for the answer, named by a hash of pictures and settings; default $AMG_CACHE or ~/.cache/amg.
        block: queries per search.
    """
    if len(bank) <= k:
        raise ValueError(f"deduplication needs more than k={k} distinct pictures, the bank has {len(bank)}")
    settings = f"{bank.digest()} {threshold} {k} {scale}"
    name = hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
    file = Path(cache or os.environ.get("AMG_CACHE", "~/.cache/amg")).expanduser() / f"dedupe-{name}.npy"
    if file.is_file():
        kept = torch.from_numpy(np.load(file, allow_pickle=False))
    else:
        kept = kept_pictures(bank.pixels(), threshold, k, scale, block)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.stem}.{os.getpid()}.npy")
        np.save(part, kept.numpy())
        part.replace(file)  # whole or not there, whoever else is writing
    return subset(bank, kept)


def kept_pictures(
    pixels: Tensor, threshold: float = 1.0, k: int = 50, scale: float = 0.5, block: int = 1024, spare: int = 30
) -> Tensor:
    """Indices of the pictures that the greedy pass leaves, ascending; see `dedupe`.

    Args:
        pixels: (N, D).
        spare: neighbours looked up beyond k, so that dropped ones seldom call for another search.
    """
    distances, indices = _neighbours(pixels, min(k + spare, len(pixels) - 1), block)
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


def subset(bank: TrainingBank, index: Tensor) -> TrainingBank:
    """Some pictures of a bank, with their captions and multiplicity."""
    rows = index.tolist()
    return TrainingBank(
        bank.images[index.to(bank.images.device)], [bank.all_captions[i] for i in rows], bank.multiplicity[index]
    )


def _neighbours(pixels: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of each picture's k nearest others, ascending, (N, k)."""
    pixels = pixels - pixels.mean(0)  # smaller norms cancel fewer digits
    norms = pixels.square().sum(1)
    distances, indices = [], []
    for start in range(0, len(pixels), block):
        near, places = nearest(pixels[start : start + block], pixels, norms, k + 1)
        own = torch.arange(start, start + len(near), device=places.device)[:, None]
        near, order = near.masked_fill(places == own, torch.inf).topk(k, dim=1, largest=False)
        distances.append(near.cpu())
        indices.append(places.gather(1, order).cpu())
    return torch.cat(distances), torch.cat(indices)


def _exact(pixels: Tensor, i: int, candidates: Tensor) -> Tensor:
    """Ascending float64 distances from picture i to the candidates but itself."""
    others = candidates[candidates != i].to(pixels.device)
    own = pixels[i].double()
    parts = [torch.linalg.vector_norm(pixels[some].double() - own, dim=1) for some in others.split(4096)]
    return torch.cat(parts).sort().values.cpu()
