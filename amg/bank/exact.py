"""Exact nearest neighbours by matrix products."""

import torch
from torch import Tensor


def nearest(queries: Tensor, keys: Tensor, square_norms: Tensor, k: int, chunk: int = 16384) -> tuple[Tensor, Tensor]:
    """The k nearest keys by Euclidean distance.

    ‖q − z‖² = ‖q‖² − 2 qᵀz + ‖z‖², so the cost is one matrix product per chunk of keys; a running top-k keeps memory
    at B × chunk. Distances below about 1e-3 of ‖q‖ lose digits to cancellation; the order of distinct pictures does not.

    Args:
        queries: (B, D).
        keys: (N, D), same device and dtype.
        square_norms: ‖z‖², (N,).
        k: 1 … N.
    Returns:
        distances (B, k), ascending, and indices (B, k).
    """
    best, index = [], []
    for start in range(0, len(keys), chunk):
        part = slice(start, start + chunk)
        # ‖q‖² is the same for every key: left out of the ranking, added at the end
        scores = torch.addmm(square_norms[part], queries, keys[part].T, alpha=-2)
        values, places = scores.topk(min(k, scores.shape[1]), dim=1, largest=False, sorted=False)
        best.append(values)
        index.append(places + start)
    values, places = torch.cat(best, 1).topk(k, dim=1, largest=False)
    distances = (values + queries.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return distances, torch.cat(index, 1).gather(1, places)
