"""Approximate search with FAISS, its candidates ranked anew exactly; for banks of 10⁵ vectors and more."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amg.bank.exact import ExactIndex
from amg.tensors import replacing

BLOCK = 65_536
"""Vectors encoded at once."""
SAMPLE = 16_384
"""Vectors that the codes are learned from, evenly spaced."""


class FaissIndex:
    """Nearest vectors by inner product: a scan of 4-bit codes of all vectors proposes, exact products rank.

    Nothing is pruned: at the cosines near 0.5 at which guidance works, a copy and its original share a cell of an
    inverted file little more often than strangers do. A vector of D values takes D/8 bytes for D >= 512, D/4 for
    D = 256 and D/2 for D <= 128. Needs the extra `faiss`; runs on the CPU.

    Args:
        vectors: (N, D). Of unit length they make it a search by cosine.
        file: where the codes are kept, so that they are made once; None keeps them in memory only.
        candidates: how many are ranked exactly; four times k where that is more.
        exact_below: vectors below which all are searched exactly.
        seed: of the k-means that makes the codes.
    """

    def __init__(
        self,
        vectors: Tensor,
        file: Path | None = None,
        candidates: int = 128,
        exact_below: int = 10_000,
        seed: int = 0,
    ):
        self.faiss = require()
        self.vectors, self.candidates, self.seed = vectors, candidates, seed
        width = min(4, -(-vectors.shape[1] // 128))  # values per code
        self.codes = -(-vectors.shape[1] // width)
        self.codes += self.codes % 2  # they are packed in pairs
        self.dimension = self.codes * width
        self._index = None if len(vectors) < exact_below else self._kept(file) or self._made(file)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best vectors among the candidates.

        Args:
            queries: (B, D).
        Returns:
            products (B, k), descending, in the vectors' own precision, and indices (B, k).
        """
        if self._index is None:
            return ExactIndex(self.vectors).search(queries.to(self.vectors), k)
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1 … {len(self)} (the index's vectors), got {k}")
        wanted = min(max(4 * k, self.candidates), len(self))
        _, proposed = self._index.search(self._padded(queries), wanted)
        proposed = torch.from_numpy(proposed).to(self.vectors.device)
        queries = queries.to(self.vectors)
        products = (self.vectors[proposed] @ queries[:, :, None])[:, :, 0]
        values, places = products.topk(k, dim=1)
        return values, proposed.gather(1, places)

    def _made(self, file: Path | None) -> Any:
        index = self.faiss.IndexPQFastScan(self.dimension, self.codes, 4, self.faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = self.seed
        rows = torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).long()
        index.train(self._padded(self.vectors[rows.to(self.vectors.device)]))
        for block in self.vectors.split(BLOCK):
            index.add(self._padded(block))
        if file is not None:
            with suppress(OSError, RuntimeError), replacing(file) as part:  # what is not kept is made again
                self.faiss.write_index(index, str(part))
        return index

    def _kept(self, file: Path | None) -> Any:
        """The index of a file; None where there is none of these vectors' number and shape."""
        if file is None or not file.is_file():
            return None
        try:
            index = self.faiss.read_index(str(file))
        except RuntimeError:  # cut short
            return None
        codes = getattr(self.faiss.downcast_index(index), "M", 0)
        fits = (index.ntotal, index.d, codes) == (len(self), self.dimension, self.codes)
        return index if fits else None

    def _padded(self, vectors: Tensor) -> np.ndarray:
        """Zeros behind the last value change no product."""
        missing = self.dimension - vectors.shape[1]
        return torch.nn.functional.pad(vectors.detach().float().cpu(), (0, missing)).contiguous().numpy()


def require() -> ModuleType:
    """FAISS.

    Raises:
        ImportError: where it is not installed; one line that says the fix.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "FAISS is not installed: pip install faiss-cpu, or search exactly (similarity.index=exact)"
        ) from None
    return faiss
