"""Cosine of copy-detection descriptors (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.bank.exact import ExactIndex
from amg.bank.faiss import FaissIndex, require
from amg.bank.remote import RemoteIndex
from amg.bank.vectors import Identity
from amg.similarity.base import Match

SCAN_FROM = 20_000
"""Vectors from which a CPU scans codes."""


class DescriptorSimilarity:
    """σ = max over n of E(x)ᵀ E(n), E an L2-normalised embedding (Eq. 9).

    Args:
        bank: training images; their embeddings are computed once and kept with the bank.
        embed: (B, 3, H, W) to (B, D), differentiable; normalised here.
        preprocess: applied to images in [−1, 1] before `embed`.
        copy, strict: an image is memorized if σ > copy (paper, SSCD: 0.5; strict: 0.4).
        norm_gradient: lets the gradient through the norm of E(x) as well; by default it is held fixed, as the mean of
            Eq. 8 is. Through the norm ∇σ vanishes exactly where a copy is reached, and guidance never lets go of it.
            An `embed` that normalises inside has the norm's gradient whatever is said here; `SSCD` looks into its file.
        identity: names the embedding, its weights and preprocessing, so that a bank with a cache keeps its embeddings
            on disk; in memory only where None.
        index: how the nearest is found: "exact"; "faiss", which proposes candidates by a scan of short codes and ranks
            them exactly (see `amg.bank.faiss`), its codes kept beside the vectors; "auto", which is exact below 20,000
            vectors, on an accelerator and without FAISS, else a scan; `milvus://host:port/collection` or `qdrant://…`
            (see `amg.bank.remote`); or a function that makes such an index, e.g. `partial(FaissIndex, candidates=512)`.
    """

    def __init__(
        self,
        bank: TrainingBank,
        embed: Callable[[Tensor], Tensor],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        copy: float = 0.5,
        strict: float = 0.4,
        norm_gradient: bool = False,
        identity: Identity | None = None,
        index: str | Callable[[Tensor], Any] = "auto",
    ):
        self.bank, self.embed, self.preprocess = bank, embed, preprocess
        self.copy, self.strict, self.norm_gradient, self.identity = copy, strict, norm_gradient, identity
        self.training = self
        """Returns the network that embeds the training images."""
        if isinstance(index, str) and index not in ("auto", "exact", "faiss") and "://" not in index:
            raise ValueError(
                f"similarity.index: unknown {index!r}; choose auto, exact, faiss, milvus://… or qdrant://…"
            )
        if index == "faiss":
            require()
        self.index = index
        self._indexes: dict[tuple[torch.device, torch.dtype], Any] = {}
        bank.stored(self)  # others' vectors in the bank's cache are told now, not in the middle of a run

    @property
    def modules(self) -> tuple[Any, ...]:
        """Holders of the weights that ∇σ passes, for `amg.guidance.base.require_gradients`."""
        return self, self.embed, getattr(self.embed, "__self__", None)

    def descriptors(self, images: Tensor) -> Tensor:
        """E(x), (B, D), of unit length."""
        embedding = self.embed(images if self.preprocess is None else self.preprocess(images))
        norm = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return embedding / (norm if self.norm_gradient else norm.detach())

    def vectors(self, like: Tensor) -> Tensor:
        """E(n) of all training images, (N, D), on the device and in the dtype of `like`."""
        return self.bank.vectors(self.training, like.device, like.dtype)

    def __call__(self, images: Tensor, near: Tensor | None = None) -> Match:
        descriptors = self.descriptors(images)
        match = self._match(descriptors, self._search(descriptors, 1)[:, 0])
        if near is None:
            return match
        known = self._match(descriptors, near.to(match.index.device))
        return Match(*(torch.where(known.value > match.value, *both) for both in zip(known, match, strict=True)))

    @property
    def remembers(self) -> bool:
        """True if the index may miss a neighbour, so that the one of the step before is worth a product."""
        return any(not isinstance(index, ExactIndex) for index in self._indexes.values())

    @torch.no_grad()
    def neighbours(self, images: Tensor, k: int) -> Tensor:
        """Indices of the k nearest training images, nearest first, (B, k)."""
        return self._search(self.descriptors(images), k)

    @torch.no_grad()
    def others(self, images: Tensor, own: Tensor) -> Match:
        """The nearest training image of each image, (B,) both, one of them left out for each.

        Args:
            own: index of the training image that is left out, (B,).
        """
        values, index = self.nearest(images, 2)
        second = index[:, :1] == own.to(index.device)[:, None]
        return Match(*(torch.where(second[:, 0], both[:, 1], both[:, 0]) for both in (values, index)))

    @torch.no_grad()
    def nearest(self, images: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Cosines and indices of the k nearest training images by exact search, (B, k): what is reported."""
        descriptors = self.descriptors(images)
        return ExactIndex(self.vectors(descriptors), list(self.bank.broken)).search(descriptors, k)

    def _match(self, descriptors: Tensor, index: Tensor) -> Match:
        vectors = self.vectors(descriptors)
        return Match((descriptors * vectors[index.to(vectors.device)].to(descriptors)).sum(1), index)

    @torch.no_grad()
    def _search(self, descriptors: Tensor, k: int) -> Tensor:
        return self.index_of(descriptors).search(descriptors.detach(), k)[1]

    def index_of(self, like: Tensor) -> Any:
        """The index of all training images for queries such as `like`, made at first use."""
        key = like.device, like.dtype
        if key not in self._indexes:
            self._indexes[key] = self._indexed(self.vectors(like))
        return self._indexes[key]

    def _indexed(self, vectors: Tensor) -> Any:
        if callable(self.index):
            return self.index(vectors)
        dead = list(self.bank.broken)
        few = len(vectors) < SCAN_FROM or vectors.device.type != "cpu" or find_spec("faiss") is None
        if self.index == "exact" or self.index == "auto" and few:
            return ExactIndex(vectors, dead)
        if "://" in self.index:
            return RemoteIndex(vectors, self.index, dead=dead)
        stored = self.bank.stored(self.training)
        if stored is None:
            return FaissIndex(vectors, dead=dead)
        # candidates lie here and there: nothing around them is worth reading ahead
        there = stored.load(random=True) if vectors.dtype == torch.float16 else vectors
        return FaissIndex(there, stored.codes, dead=dead, state=[self.bank.digest(), dead])
