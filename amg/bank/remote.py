"""Search in a vector data base: it proposes candidates, exact products over our own vectors rank them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank.exact import check_k, ranked

BLOCK = 1000
"""Vectors sent at once."""


class RemoteIndex:
    """Nearest vectors by inner product among the candidates of a data base.

    A collection that is not there, or holds fewer vectors, is filled. Approximate search of graphs loses copies at
    cosines near 0.5; Milvus is asked to scan codes of all vectors, Qdrant to search exactly.

    Args:
        vectors: (N, D), of unit length.
        url: `milvus://host:19530/collection`, or `milvus:///folder/file.db/collection` for Milvus Lite;
            `qdrant://host:6333/collection`, or `qdrant://:memory:/collection`. A token is taken from $MILVUS_TOKEN or
            $QDRANT_API_KEY.
        candidates: how many are ranked exactly; four times k where that is more.
        dead: numbers that are no answer.
    Raises:
        ImportError: without the client; one line.
        ValueError: for another scheme, or a collection of more vectors than the bank has.
    """

    def __init__(self, vectors: Tensor, url: str, candidates: int = 128, dead: Sequence[int] = ()):
        self.vectors, self.candidates, self.dead = vectors, candidates, sorted(dead)
        scheme, _, rest = url.partition("://")
        place, _, name = rest.rpartition("/")
        if scheme not in CLIENTS or not place or not name:
            raise ValueError(f"similarity.index: {url!r} is no milvus://host:port/collection or qdrant://…")
        count, self._send, self._ask = CLIENTS[scheme](place, name, vectors.shape[1])
        if count > len(vectors):
            raise ValueError(f"similarity.index: {url} holds {count} vectors, the bank {len(vectors)}: name another")
        for start in range(count, len(vectors), BLOCK):
            self._send(start, F.normalize(vectors[start : start + BLOCK].float().cpu(), dim=1).tolist())

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best of the candidates: products (B, k), descending, and indices (B, k), for queries (B, D)."""
        check_k(k, len(self))
        wanted = min(max(4 * k, self.candidates), len(self))
        index = torch.tensor(self._ask(queries.detach().float().cpu().tolist(), wanted), device=queries.device)
        return ranked(queries, self.vectors, index, k, self.dead)


Client = tuple[int, Callable[[int, list[list[float]]], Any], Callable[[list[list[float]], int], list[list[int]]]]
"""Vectors that are there, what sends more, and what asks for the numbers of the nearest."""


def _milvus(place: str, name: str, dimension: int) -> Client:
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise ImportError("similarity.index: pymilvus is not installed: pip install pymilvus milvus-lite") from None
    lite = place.startswith("/")
    client = MilvusClient(place if lite else f"http://{place}", token=os.environ.get("MILVUS_TOKEN", ""))
    if not client.has_collection(name):
        index = client.prepare_index_params()
        kind = (
            {"index_type": "FLAT"}
            if lite
            else {"index_type": "SCANN", "params": {"nlist": 1024, "with_raw_data": False}}
        )
        index.add_index("vector", metric_type="IP", **kind)
        client.create_collection(
            name, dimension=dimension, metric_type="IP", index_params=index, consistency_level="Strong"
        )
    count = client.query(name, output_fields=["count(*)"])[0]["count(*)"]

    def send(start: int, vectors: list[list[float]]) -> None:
        client.insert(name, [{"id": start + i, "vector": vector} for i, vector in enumerate(vectors)])

    def ask(queries: list[list[float]], k: int) -> list[list[int]]:
        params = {} if lite else {"params": {"nprobe": 1024, "reorder_k": k}}  # all cells: pruning loses copies
        found = client.search(name, queries, limit=k, search_params={"metric_type": "IP", **params})
        return [[hit["id"] for hit in hits] for hits in found]

    return count, send, ask


def _qdrant(place: str, name: str, dimension: int) -> Client:
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        raise ImportError("similarity.index: qdrant-client is not installed: pip install qdrant-client") from None
    key = os.environ.get("QDRANT_API_KEY")
    client = QdrantClient(":memory:") if place == ":memory:" else QdrantClient(url=f"http://{place}", api_key=key)
    if not client.collection_exists(name):
        client.create_collection(name, models.VectorParams(size=dimension, distance=models.Distance.DOT))
    count = client.count(name).count

    def send(start: int, vectors: list[list[float]]) -> None:
        points = [models.PointStruct(id=start + i, vector=vector) for i, vector in enumerate(vectors)]
        client.upsert(name, points, wait=True)

    def ask(queries: list[list[float]], k: int) -> list[list[int]]:
        requests = [models.QueryRequest(query=q, limit=k, params=models.SearchParams(exact=True)) for q in queries]
        return [[point.id for point in found.points] for found in client.query_batch_points(name, requests)]

    return count, send, ask


CLIENTS: dict[str, Callable[[str, str, int], Client]] = {"milvus": _milvus, "qdrant": _qdrant}
