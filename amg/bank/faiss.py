"""Search of large banks with FAISS: a scan of short codes proposes, exact products rank; recall is measured."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank.exact import ExactIndex, check_k, ranked
from amg.tensors import replacing

BLOCK = 16_384
"""Vectors encoded at once."""
SAMPLE = 16_384
"""Vectors that the codes are learned from, evenly spaced."""
COSINES = (0.4, 0.5, 0.7, 0.9)
"""Of a query to a stored vector, at which recall is measured: where guidance works, and where copies lie."""
ASKED = 256
"""Queries at each of them."""
ENOUGH = 0.99
"""Recall below which another index is tried, and at last a warning given."""
TRIED = ((1, 128), (1, 512), (2, 32), (2, 128), (4, 128), (4, 512))
"""Bytes of a code, in units of the shortest, and candidates: the cheapest whose recall is enough is taken."""
CANDIDATE = 1000
"""Shortest codes that are scanned in the time of ranking one candidate, about."""

Recall = Mapping[float, tuple[float, float, float]]
"""Share of queries whose nearest vector is found, with its 95 % interval, by cosine."""


class FaissIndex:
    """Nearest vectors by inner product: a scan of 4-bit codes of all vectors proposes, exact products rank.

    Nothing is pruned: at the cosines near 0.5 at which guidance works, a copy and its original share a cell of an
    inverted file little more often than strangers do. A vector of 512 values takes 32 bytes, or 64 or 128 where
    recall asks for it. In memory are the codes alone; vectors are read where they lie. Needs the extra
    `bank`; runs on the CPU.

    Args:
        vectors: (N, D). Of unit length they make it a search by cosine.
        file: where the codes are kept, with `index.json` beside them, so that they are made once; None keeps them in
            memory only.
        candidates: how many are ranked exactly, four times k where that is more, and
        width: how many values a code of 4 bits stands for, at most; where either is None, both are chosen by the recall
            that they reach.
        exact_below: vectors below which all are searched exactly.
        dead: numbers that are no answer.
        state: JSON; codes on disk that were made in another one are made anew.
        seed: of the k-means that makes the codes.
    """

    recall: Recall
    """As it was measured when the codes were made; empty where they were not."""

    def __init__(
        self,
        vectors: Tensor,
        file: Path | None = None,
        candidates: int | None = None,
        width: int | None = None,
        exact_below: int = 20_000,
        dead: Sequence[int] = (),
        state: Any = None,
        seed: int = 0,
    ):
        self.faiss = require()
        self.vectors, self.dead, self.seed, self.recall = vectors, sorted(dead), seed, {}
        self._index = None
        if len(vectors) < exact_below:
            return
        dimension = vectors.shape[1]
        shortest = width or min(8, -(-dimension // 64))
        about = {"state": state, "count": len(vectors), "dimension": dimension}
        if file is not None and self._kept(file, about):
            self._warn()
            return
        if candidates is not None or width is not None:
            self._make(shortest, candidates or TRIED[0][1])
        else:
            self._choose(shortest)
        if file is not None:
            self._keep(file, about)
        self._warn()

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def codes(self) -> int:
        """4-bit codes of a vector."""
        return 0 if self._index is None else self._index.pq.M

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best vectors among the candidates.

        Args:
            queries: (B, D).
        Returns:
            products (B, k), descending, in the queries' precision, and indices (B, k).
        """
        if self._index is None:
            found = ExactIndex(self.vectors, self.dead).search(queries.to(self.vectors.device), k)
            return found[0].to(queries.device), found[1].to(queries.device)
        check_k(k, len(self))
        wanted = min(max(4 * k, self.candidates), len(self))
        _, proposed = self._index.search(self._padded(queries), wanted)
        return ranked(queries, self.vectors, torch.from_numpy(proposed).to(queries.device), k, self.dead)

    def _make(self, width: int, candidates: int) -> None:
        """Codes of all vectors, a block at a time."""
        codes = -(-self.vectors.shape[1] // width)
        codes += codes % 2  # they are packed in pairs
        index = self.faiss.IndexPQFastScan(codes * width, codes, 4, self.faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = self.seed
        self._index, self.candidates = index, candidates
        rows = torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).long()
        index.train(self._padded(self.vectors[rows.to(self.vectors.device)]))
        for block in self.vectors.split(BLOCK):
            index.add(self._padded(block))

    def _choose(self, width: int) -> None:
        """The cheapest of TRIED whose recall is enough at every cosine, else the last of them."""
        queries = {cosine: near(self.vectors, cosine, ASKED, self.seed) for cosine in COSINES}
        everything = torch.cat(list(queries.values()))
        truth = ExactIndex(self.vectors, self.dead, BLOCK).search(everything.to(self.vectors.device))[1][:, 0].cpu()
        made = None
        for finer, candidates in sorted(TRIED, key=lambda tried: tried[0] * len(self) + tried[1] * CANDIDATE):
            if width // finer < 1:
                continue
            if made != finer:
                self._make(width // finer, candidates)
                made = finer
            self.candidates = candidates
            found = torch.cat([self.search(some)[1][:, 0] for some in everything.split(64)]) == truth
            counts = found.view(len(COSINES), -1).sum(1).tolist()
            self.recall = {c: interval(n, ASKED) for c, n in zip(COSINES, counts, strict=True)}
            if min(value for value, _, _ in self.recall.values()) >= ENOUGH:
                return

    def _warn(self) -> None:
        low = {cosine: value for cosine, (value, _, _) in self.recall.items() if value < ENOUGH}
        if low:
            told = ", ".join(f"{value:.3f} at cosine {cosine:g}" for cosine, value in low.items())
            warnings.warn(
                f"similarity.index: of training images at these cosines the index finds {told}: index=exact finds all",
                stacklevel=4,
            )

    def _keep(self, file: Path, about: dict[str, Any]) -> None:
        with suppress(OSError, RuntimeError):  # what is not kept is made again
            with replacing(file) as part:
                self.faiss.write_index(self._index, str(part))
            with replacing(file.with_name("index.json")) as part:
                recall = {str(cosine): list(values) for cosine, values in self.recall.items()}
                made = {"codes": self.codes, "candidates": self.candidates, "recall": recall}
                part.write_text(json.dumps(about | made, indent=2) + "\n", encoding="utf-8")

    def _kept(self, file: Path, about: dict[str, Any]) -> bool:
        """Takes the codes of a file; False where there are none of these vectors."""
        try:
            made = json.loads(file.with_name("index.json").read_text(encoding="utf-8"))
            if {key: made[key] for key in about} != about:
                return False
            self._owner = self.faiss.read_index(str(file))
            index = self.faiss.downcast_index(self._owner)  # a pointer into its owner
            if (index.ntotal, getattr(index, "pq", index).M) != (about["count"], made["codes"]):
                return False
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError):  # none, or cut short
            return False
        self._index, self.candidates = index, made["candidates"]
        self.recall = {float(cosine): tuple(values) for cosine, values in made["recall"].items()}
        return True

    def _padded(self, vectors: Tensor) -> np.ndarray:
        """Zeros behind the last value change no product."""
        missing = self._index.d - vectors.shape[1]
        return F.pad(vectors.detach().float().cpu(), (0, missing)).contiguous().numpy()


def near(vectors: Tensor, cosine: float, n: int, seed: int = 0) -> Tensor:
    """Queries of unit length at a cosine to one stored vector each, (n, D), float32.

    The rest of each is a mean of 16 other stored vectors, so that queries of a bank whose vectors all lie close
    together lie there too.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(vectors), (17, n), generator=generator)
    own, *others = (F.normalize(vectors[some.to(vectors.device)].float().cpu(), dim=1) for some in rows)
    rest = torch.stack(others).mean(0)
    rest = F.normalize(rest - (rest * own).sum(1, keepdim=True) * own, dim=1)
    return cosine * own + (1 - cosine**2) ** 0.5 * rest


def interval(hits: int, n: int) -> tuple[float, float, float]:
    """A share with Wilson's 95 % interval."""
    z = 1.959964
    share, spread = hits / n, z * ((hits / n * (1 - hits / n) + z**2 / (4 * n)) / n) ** 0.5
    middle = share + z**2 / (2 * n)
    return share, max((middle - spread) / (1 + z**2 / n), 0.0), min((middle + spread) / (1 + z**2 / n), 1.0)


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
