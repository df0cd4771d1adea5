"""Approximate search with FAISS, its candidates ranked anew exactly; for banks of millions."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


class FaissIndex:
    """Nearest vectors by inner product: an inverted file proposes candidates, their exact products rank them.

    Needs the extra `faiss`; it runs on the CPU. Vectors of unit length make it a search by cosine.

    Args:
        vectors: (N, D).
        candidates: how many are ranked exactly, at least.
        lists: cells of the inverted file; √N where None, and one, i.e. exact search, below 10,000 vectors.
        probes: cells visited; all makes the search exact.
        seed: of the k-means that makes the cells.
    """

    def __init__(
        self, vectors: Tensor, candidates: int = 100, lists: int | None = None, probes: int = 16, seed: int = 0
    ):
        faiss = require()
        self.vectors, self.candidates = vectors, candidates
        keys = vectors.detach().float().cpu().contiguous().numpy()
        if lists is None:
            lists = int(len(keys) ** 0.5) if len(keys) >= 10_000 else 1
        flat = faiss.IndexFlatIP(keys.shape[1])
        self._index = faiss.IndexIVFFlat(flat, keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = seed
        self._index.train(keys)
        self._index.add(keys)
        self._index.nprobe = min(probes, lists)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best vectors among the candidates.

        Args:
            queries: (B, D).
        Returns:
            products (B, k), descending, in the vectors' own precision, and indices (B, k).
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1 … {len(self)} (the index's vectors), got {k}")
        wanted = min(max(k, self.candidates), len(self))
        _, found = self._index.search(queries.detach().float().cpu().contiguous().numpy(), wanted)
        found = torch.from_numpy(found).to(self.vectors.device)
        queries = queries.to(self.vectors)
        products = (self.vectors[found.clamp(min=0)] * queries[:, None]).sum(2).masked_fill(found < 0, -torch.inf)
        values, places = products.topk(k, dim=1)
        indices = found.gather(1, places)
        short = (indices < 0).any(1)  # the visited cells hold fewer than k
        if short.any():
            values[short], indices[short] = (queries[short] @ self.vectors.T).topk(k, dim=1)
        return values, indices


def require() -> ModuleType:
    """FAISS.

    Raises:
        ImportError: where it is not installed; one line that says the mend.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "FAISS is not installed: pip install faiss-cpu, or search exactly (similarity.index=exact)"
        ) from None
    return faiss
