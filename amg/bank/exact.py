"""Exact nearest neighbours by matrix products: images by distance, descriptors by cosine."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amg.tensors import floats

CHUNK = 2**24
"""Values squared at once, 67 MB: from 32 MB on, an allocator returns to the system what is freed."""


def nearest(queries: Tensor, keys: Tensor, norms: Tensor, k: int, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest keys by Euclidean distance.

    ‖q − z‖² = ‖q‖² − 2 qᵀz + ‖z‖², so the cost is one matrix product per chunk of keys; a running top-k keeps memory
    at B × chunk. Distances below about 1e-3 of ‖q‖ lose digits to cancellation; the order of distinct images does
    not.

    Args:
        queries: (B, D).
        keys: (N, D), same device; 8-bit pixels are made floats chunk by chunk.
        norms: ‖z‖², (N,).
        k: 1 … N.
        chunk: keys per matrix product; by default 1024 on a CPU, whose cache then holds what the next product needs
            (a quarter to a third faster than 16384 with 50,000 CIFAR-10 images), and 16384 elsewhere.
    Returns:
        distances (B, k), ascending, and indices (B, k).
    """
    chunk = chunk or (1024 if keys.device.type == "cpu" else 16384)
    # ‖q‖² is the same for every key: left out of the ranking, added at the end
    values, indices = _best(
        lambda part: torch.addmm(norms[part], queries, floats(keys[part]).to(queries.dtype).T, alpha=-2),
        len(keys),
        k,
        chunk,
        largest=False,
    )
    distances = (values + square_norms(queries)[:, None]).clamp(min=0).sqrt()
    return distances, indices


def square_norms(keys: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """‖z‖² of each key, (N,), in a dtype or the keys' own, without a second copy of all keys."""
    parts = keys.split(max(1, CHUNK // keys.shape[1]))
    return torch.cat([floats(part).to(dtype or part.dtype).square().sum(1) for part in parts])


class ExactIndex:
    """Nearest vectors by inner product; of vectors of unit length, by cosine.

    Args:
        vectors: (N, D), of any precision.
        dead: numbers that are no answer, as of images that cannot be read.
        chunk: vectors per matrix product: memory stays at B × chunk however large the bank is.
        coarse: multiplies in the vectors' own half precision and ranks the best anew in the queries'; None does so on
            an accelerator.
    """

    def __init__(self, vectors: Tensor, dead: Sequence[int] = (), chunk: int = 65536, coarse: bool | None = None):
        self.vectors, self.dead, self.chunk = vectors, sorted(dead), chunk
        half = vectors.dtype in (torch.float16, torch.bfloat16)
        self.coarse = half and (vectors.device.type != "cpu" if coarse is None else coarse)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Products (B, k), descending, in the queries' precision, and indices (B, k), for queries (B, D)."""
        check_k(k, len(self))
        dtype = self.vectors.dtype if self.coarse else queries.dtype
        asked = queries.to(dtype)

        def scores(part: slice) -> Tensor:
            found = asked @ self.vectors[part].to(dtype).T
            for row in self.dead:
                if part.start <= row < part.start + found.shape[1]:
                    found[:, row - part.start] = -torch.inf
            return found

        wanted = min(k + SPARE, len(self)) if self.coarse else k
        values, index = _best(scores, len(self), wanted, self.chunk, largest=True)
        return ranked(queries, self.vectors, index, k, self.dead) if self.coarse else (values, index)


SPARE = 32
"""Vectors beyond those asked for that are ranked anew after products in half precision."""


def ranked(queries: Tensor, vectors: Tensor, index: Tensor, k: int, dead: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """The k best of candidates (B, C): products in the queries' precision, descending, and their indices, (B, k)."""
    rows = vectors[index.to(vectors.device)].to(queries.device, queries.dtype)
    products = torch.bmm(rows, queries[:, :, None])[:, :, 0]
    if dead:
        products = products.masked_fill(torch.isin(index, torch.tensor(dead, device=index.device)), -torch.inf)
    values, places = products.topk(k, dim=1)
    return values, index.gather(1, places)


def check_k(k: int, n: int) -> None:
    """Refuses to list more vectors than there are."""
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1 … {n} (the index's vectors), got {k}")


def _best(scores_of: Callable[[slice], Tensor], n: int, k: int, chunk: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k best of n scores a row, best first, and their indices, both (B, k); `chunk` of them are held at once."""
    best, index = [], []
    for start in range(0, n, chunk):
        scores = scores_of(slice(start, start + chunk))
        values, places = _top(scores, min(k, scores.shape[1]), largest)
        best.append(values)
        index.append(places + start)
    values, places = _top(torch.cat(best, 1), k, largest)
    return values, torch.cat(index, 1).gather(1, places)


def _top(scores: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """One alone is found faster than by a top-k."""
    if k == 1:
        return (scores.max if largest else scores.min)(1, keepdim=True)
    return scores.topk(k, dim=1, largest=largest)
