"""Descriptors of a bank's images, kept on disk in half precision beside a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from amg.bank.blocks import Blocks
from amg.bank.cache import cache_folder
from amg.tensors import digest_of, replacing

if TYPE_CHECKING:
    from amg.bank.bank import TrainingBank

BLOCK = 1024
"""Images per block: what a killed run loses at most."""


@dataclass(frozen=True)
class Identity:
    """Identity of a descriptor."""

    descriptor: str
    weights: str
    """Digest of its weights."""
    preprocessing: str = "none"

    @classmethod
    def of(cls, module: nn.Module, descriptor: str, preprocessing: str = "none") -> Identity:
        """Returns the identity of a network with the weights that it has now."""
        return cls(descriptor, digest_of(module.state_dict().items()), preprocessing)


class StoredVectors:
    """The float16 descriptors of a bank's images in one folder: `vectors.npy`, `vectors.done`, `manifest.json`.

    Args:
        bank: names the place: its own folder, its `cache`, or below $AMG_CACHE, else ~/.cache/amg, for "auto". Each
            descriptor has a folder of its own, named by all that decides the vectors but the images.
        identity: of the descriptor.
    Raises:
        ValueError: where the folder holds vectors of another bank; one line that says both sides.
    """

    def __init__(self, bank: TrainingBank, identity: Identity):
        self.identity, self.count, self.source, self.digest = identity, len(bank), bank.source, bank.digest()
        self.grown = bank.grown
        root = bank.folder / "vectors" if bank.folder else None
        decides = f"{identity} {bank.size}"
        if root is None and bank.cache == "auto":
            root, decides = cache_folder() / "vectors", f"{decides} {bank.digest()}"
        mark = hashlib.blake2b(decides.encode(), digest_size=4).hexdigest()
        self.root = root or cache_folder(bank.cache)
        self.folder = self.root / f"{identity.descriptor}-{identity.preprocessing}-{mark}"
        self._manifest = self.folder / "manifest.json"
        self.codes = self.folder / "codes.faiss"
        """Place for the codes of `amg.bank.faiss`."""
        if self._manifest.is_file():
            there = self.manifest()
            before = self.grown.get(there["bank"])
            if there["bank"] != self.digest and before != there["count"]:
                raise ValueError(
                    f"data.cache: {self.folder} holds vectors of {there['count']} images of {there.get('source')}, "
                    f"this run has {self.count} of {self.source}: delete that folder, or name another by data.cache"
                )

    @property
    def others(self) -> list[str]:
        """Descriptors that have vectors of this bank."""
        return sorted(file.parent.name for file in self.root.glob("*/manifest.json"))

    def manifest(self) -> dict[str, Any]:
        """Source, descriptor, digest of its weights, preprocessing, dimension, count and the bank's digest."""
        try:
            return json.loads(self._manifest.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"data.cache: {self._manifest} is no readable manifest: delete {self.folder}") from None

    def rows(self, block: int) -> slice:
        """The images of a block."""
        return slice(block * BLOCK, min((block + 1) * BLOCK, self.count))

    def missing(self) -> list[int]:
        """Blocks that are still to be computed."""
        if not self._manifest.is_file():
            return list(range(-(-self.count // BLOCK)))
        there = self.manifest()
        blocks = self._blocks(there["dimension"])
        if there["bank"] != self.digest:
            self._allocate(there["dimension"])
        return blocks.missing()

    def write(self, block: int, vectors: Tensor) -> None:
        """Keeps the descriptors of one block's images, (n, D); the first of all takes the room for all.

        Raises:
            OSError: where nothing can be written; it names the folder and the mend.
        """
        with self._named():
            if not self._manifest.is_file():
                self._allocate(vectors.shape[1])
            self._blocks(vectors.shape[1]).write(block, vectors.detach().float().cpu().numpy().astype(np.float16))

    def load(self, random: bool = False) -> Tensor:
        """All descriptors, (N, D), float16, memory-mapped; see `Blocks.load`."""
        return self._blocks(self.manifest()["dimension"]).load(random)

    def _blocks(self, dimension: int) -> Blocks:
        return Blocks(self.folder / "vectors.npy", np.float16, (self.count, dimension), BLOCK)

    def _allocate(self, dimension: int) -> None:
        before = self.manifest()["count"] if self._manifest.is_file() else 0
        with self._named():
            self._blocks(dimension).allocate(before)
            content = {"source": self.source, **asdict(self.identity), "bank": self.digest, "count": self.count}
            with replacing(self._manifest) as part:
                text = json.dumps({**content, "dimension": dimension, "block": BLOCK}, indent=2, ensure_ascii=False)
                part.write_text(text + "\n", encoding="utf-8")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names folder and mend where a write fails."""
        try:
            yield
        except OSError as error:
            why = f"{error.strerror} (data.cache names another folder, data.cache=null keeps them in memory)"
            raise OSError(error.errno, why, str(self.folder)) from None
