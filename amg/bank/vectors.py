"""Descriptors of a bank's images, kept on disk: shards that become one memory-mapped file, and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from amg.bank.cache import cache_folder, write_array
from amg.tensors import digest_of, replacing

if TYPE_CHECKING:
    from amg.bank.bank import TrainingBank

SHARD = 256
"""Images per file: what a killed run loses at most."""


@dataclass(frozen=True)
class Identity:
    """Identity of a descriptor."""

    descriptor: str
    weights: str
    """Digest of its weights."""
    preprocessing: str = "none"

    @classmethod
    def of(cls, module: nn.Module, descriptor: str, preprocessing: str = "none") -> Identity:
        """That of a network with the weights that it has now."""
        return cls(descriptor, digest_of(module.state_dict().items()), preprocessing)


class StoredVectors:
    """The float32 descriptors of a bank's images in one folder: `manifest.json`, `00000.npy`, `00001.npy` …

    A shard is whole or not there, so that whoever is killed goes on with those missing. At the first `load` the shards
    become one file, `vectors.npy`, which is searched where it lies on disk.

    Args:
        bank: whose `cache` names the place: a folder, in which each descriptor has its own; or "auto", which is below
            $AMG_CACHE, else ~/.cache/amg, under a name made of all that decides the vectors.
        identity: of the descriptor.
    Raises:
        ValueError: where the folder holds vectors of another bank or descriptor; one line that says both sides.
    """

    def __init__(self, bank: TrainingBank, identity: Identity):
        name = f"{identity.descriptor}-{identity.preprocessing}"
        if bank.cache == "auto":
            decides = f"{bank.digest()} {identity} {SHARD}"
            name += f"-{hashlib.blake2b(decides.encode(), digest_size=8).hexdigest()}"
        self.folder = (cache_folder() / "vectors" if bank.cache == "auto" else cache_folder(bank.cache)) / name
        self.expected = {
            **asdict(identity),
            "bank": bank.digest(),
            "count": len(bank),
            "dtype": "float32",
            "shard": SHARD,
        }
        self.source, self._manifest = bank.source, self.folder / "manifest.json"
        self._whole = self.folder / "vectors.npy"
        self.codes = self.folder / "codes.faiss"
        """Place for the codes of `amg.bank.faiss`."""
        if self._manifest.is_file():
            self._compare(self.manifest())

    def manifest(self) -> dict[str, Any]:
        """Source, descriptor, digest of its weights, preprocessing, dimension, dtype, count and the bank's digest."""
        try:
            return json.loads(self._manifest.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"data.cache: {self._manifest} is no readable manifest: delete {self.folder}") from None

    def rows(self, shard: int) -> slice:
        """The images of a shard."""
        return slice(shard * SHARD, min((shard + 1) * SHARD, self.expected["count"]))

    def missing(self) -> list[int]:
        """Shards that are still to be computed."""
        if self._whole.is_file():
            return []
        return [shard for shard in self._shards() if not self._file(shard).is_file()]

    def write(self, shard: int, vectors: Tensor) -> None:
        """Keeps the descriptors of one shard's images, (n, D); the first of all writes the manifest.

        Raises:
            OSError: where nothing can be written; it names the folder and the mend.
        """
        content = {"source": self.source, **self.expected, "dimension": vectors.shape[1]}
        with self._named():
            if not self._manifest.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(self._manifest) as part:
                    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            write_array(self._file(shard), [vectors.detach().float().cpu().numpy()])

    def load(self) -> Tensor:
        """All descriptors, (N, D), float32; memory-mapped, so that they are read from disk as they are needed.

        Raises:
            ValueError: for a file of another size or one that cannot be read.
            OSError: as `write`.
        """
        shape = self.expected["count"], self.manifest()["dimension"]
        if not self._whole.is_file():
            try:
                with self._named():
                    self._join(shape)
            except (OSError, ValueError):
                if not self._whole.is_file():  # it is where another process has joined them meanwhile
                    raise
        return torch.from_numpy(self._read(self._whole, shape))

    def _join(self, shape: tuple[int, int]) -> None:
        """Makes one file of the shards, a shard at a time."""
        rows = [self.rows(shard) for shard in self._shards()]
        files = [self._file(shard) for shard in self._shards()]
        shards = [self._read(file, (some.stop - some.start, shape[1])) for file, some in zip(files, rows, strict=True)]
        write_array(self._whole, shards)
        for file in files:
            file.unlink(missing_ok=True)  # another process may have joined them as well

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names folder and mend where a write fails."""
        try:
            yield
        except OSError as error:
            why = f"{error.strerror} (data.cache names another folder, data.cache=null keeps them in memory)"
            raise OSError(error.errno, why, str(self.folder)) from None

    def _read(self, file: Path, expected: tuple[int, int]) -> np.ndarray:
        try:
            # nothing is ever written to it, but torch wants what it wraps writable
            vectors = np.load(file, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"data.cache: {file} cannot be read ({error}): delete it to have it made anew") from None
        if vectors.shape != expected or vectors.dtype != np.float32:
            raise ValueError(
                f"data.cache: {file} holds {vectors.dtype} {vectors.shape} where its manifest says float32 {expected}: "
                "delete it to have it made anew"
            )
        return vectors

    def _compare(self, there: dict[str, Any]) -> None:
        differ = [
            f"{key} {there.get(key)} there, {here} here"
            for key, here in self.expected.items()
            if there.get(key) != here
        ]
        if differ:
            raise ValueError(
                f"data.cache: {self.folder} holds vectors of {there.get('source')}, this run has {self.source}: "
                f"{'; '.join(differ)}; delete that folder, or name another by data.cache"
            )

    def _shards(self) -> range:
        return range(-(-self.expected["count"] // SHARD))

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npy"
