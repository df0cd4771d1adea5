"""The training set made searchable: images, captions, multiplicity."""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.bank.exact import nearest, square_norms
from amg.bank.images import Size
from amg.bank.vectors import StoredVectors


def find(path: str | Path) -> None:
    """Checks that a folder or a Parquet file is there, without reading it.

    Raises:
        FileNotFoundError: in one line, with the ways on.
    """
    from amg.bank.images import suffixes

    path = Path(path)
    if path.is_file() or any(file.suffix.lower() in {*suffixes(), ".parquet"} for file in path.rglob("*")):
        return
    raise FileNotFoundError(
        f"data.path: no images in {path}: name a folder of images with captions (data=folder data.path=…); "
        "`python run.py task=download` fetches those of the memorized prompts into data/memorized_laion; "
        "model=closed_form and model=lab_sd bring their own"
    )


class TrainingBank:
    """Distinct training images with their captions.

    Exact repeats of an image are merged: it is kept once, with its multiplicity and all its captions, so that repeats
    count once in a k-NN mean. Images live in memory as float32 on one device; vectors of each descriptor are computed
    at first use and kept.

    Args:
        images: (N, 3, H, W) in [−1, 1], distinct.
        captions: the captions of each image, most frequent first; empty where it has none.
        multiplicity: how often each image occurs, (N,).
        source: where they come from, in words.
        cache: where descriptors are kept on disk, see `amg.bank.vectors`: a folder, "auto", or None for nowhere.
    """

    def __init__(
        self,
        images: Tensor,
        captions: Sequence[Sequence[str]],
        multiplicity: Tensor,
        source: str = "memory",
        cache: str | Path | None = None,
    ):
        self.images, self.all_captions, self.multiplicity = images, tuple(map(tuple, captions)), multiplicity
        self.source, self.cache = source, cache
        self.captions = [some[0] if some else "" for some in self.all_captions]
        self.note = ""  # what a table should say of it, e.g. how many images of a list it has
        self._flat = images.flatten(1)
        self._square_norms = square_norms(self._flat)
        self._vectors: dict[Any, Tensor] = {}
        self._copies: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._digest: str | None = None

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        captions: Sequence[str | Sequence[str] | None] | None = None,
        source: str = "memory",
        cache: str | Path | None = None,
    ) -> TrainingBank:
        """Merges exact repeats.

        Args:
            images: (N, 3, H, W) floats in [−1, 1].
            captions: N captions, one per row; "" or None where an image has none. A list of captions stands for as
                many occurrences of its image.
            source, cache: as the class's.
        Raises:
            ValueError: for another shape, range, number or type of captions, or for an empty bank.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"bank pictures must be (N, 3, H, W) with N > 0, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(
                f"bank pictures must be floats in [-1, 1], got {images.dtype}: divide by 127.5, subtract 1"
            )
        lo, hi = images.min().item(), images.max().item()
        if lo != lo:
            raise ValueError("bank pictures hold NaN: leave those pictures out")
        if lo < -1.001 or hi > 1.001:
            raise ValueError(
                f"bank pictures must lie in [-1, 1], got [{lo:.2f}, {hi:.2f}]: divide 8-bit values by 127.5, subtract 1"
            )
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"the bank got {len(images)} pictures and {len(captions)} captions: one caption each")
        listed = [_captions(some, i) for i, some in enumerate([""] * len(images) if captions is None else captions)]
        images = images.detach().float().contiguous()
        groups: dict[bytes, list[int]] = collections.defaultdict(list)
        for i, picture in enumerate(images.cpu().numpy()):
            groups[hashlib.blake2b(picture.tobytes(), digest_size=16).digest()].append(i)
        rows = list(groups.values())
        if len(rows) < len(images):  # without repeats a copy would double the memory
            images = images[torch.tensor([group[0] for group in rows], device=images.device)]
        counts = [collections.Counter(name for i in group for name in listed[i]) for group in rows]
        names = [[name for name, _ in count.most_common() if name] for count in counts]
        return cls(images, names, torch.tensor([count.total() for count in counts]), source, cache)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        size: int | tuple[int, int] | None = None,
        deduplicate: float | None = None,
        cache: str | Path | None = "auto",
    ) -> TrainingBank:
        """Images of a folder with their captions; see `amg.bank.folder`.

        Transparent images are composed on white, deep grey ones scaled to 8 bits, and turned as their EXIF says. One
        warning counts the images that cannot be read and those without caption.

        Args:
            size: side of the squares that images are made, or (height, width); None keeps their own, which must then
                be equal.
            deduplicate: threshold of `amg.bank.dedupe`, 1.0 in the paper; None keeps all.
            cache: where descriptors are kept, so that they are computed once: a folder, or "auto" for one below
                $AMG_CACHE, else ~/.cache/amg; None keeps them in memory only.
        """
        from amg.bank.folder import download_note, read_folder

        bank = cls._read(read_folder, path, size, deduplicate, cache)
        bank.note = download_note(path, int(bank.multiplicity.sum()))
        return bank

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        size: int | tuple[int, int] | None = None,
        deduplicate: float | None = None,
        cache: str | Path | None = "auto",
    ) -> TrainingBank:
        """Images of Parquet files in the hub's layout, see `amg.bank.parquet`; keys as `from_folder`'s."""
        from amg.bank.parquet import read_parquet

        return cls._read(read_parquet, path, size, deduplicate, cache)

    @classmethod
    def _read(cls, reader: Callable, path: str | Path, size: Size, deduplicate: float | None, cache):
        path = Path(os.path.expanduser(path))
        # deduplication holds a second copy: centred images, then the subset
        images, captions = reader(path, size, copies=1 if deduplicate is None else 2)
        bank = cls.from_tensors(images, captions, source=str(path), cache=cache)
        del images
        if deduplicate is None:
            return bank
        from amg.bank.dedupe import dedupe

        return dedupe(bank, deduplicate)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Flattened images, (n, 3·H·W)."""
        return self._flat if index is None else self._flat[index.to(self._flat.device)]

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k nearest training images in pixel space, exact.

        Args:
            queries: (B, 3, H, W), the bank's size.
            k: 1 … len(bank).
        Returns:
            ℓ2 distances (B, k), ascending, and indices (B, k).
        """
        if queries.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"queries are {tuple(queries.shape[1:])} but the bank's pictures {tuple(self.images.shape[1:])}: "
                f"load the bank with size={tuple(queries.shape[2:])}"
            )
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1 … {len(self)} (the bank's distinct pictures), got {k}")
        keys, norms = self.keys(queries.device, queries.dtype)
        distances, indices = nearest(queries.flatten(1).to(keys.dtype), keys, norms, k)
        return distances.to(queries.dtype), indices

    def vectors(self, descriptor: Any, device: torch.device, dtype: torch.dtype, batch: int = 64) -> Tensor:
        """Descriptors of all images, (N, D): `descriptor.descriptors(images)`, computed once per device and dtype.

        Where the bank has a cache and the descriptor an `identity`, they are kept on disk in float32; float64 is
        computed anew.
        """
        key = descriptor, device, dtype
        if key not in self._vectors:
            stored = None if dtype == torch.float64 else self.stored(descriptor)
            if stored is None:
                found = self.describe(descriptor, slice(None), device, dtype, batch)
            else:
                for shard in stored.missing():
                    stored.write(shard, self.describe(descriptor, stored.rows(shard), device, torch.float32, batch))
                found = stored.load()
            self._vectors[key] = found.to(device, dtype)
        return self._vectors[key]

    @torch.no_grad()
    def describe(
        self, descriptor: Any, rows: slice, device: torch.device, dtype: torch.dtype, batch: int = 64
    ) -> Tensor:
        """Descriptors of some images, (n, D)."""
        parts = self.images[rows].split(batch)
        vectors = torch.cat([descriptor.descriptors(images.to(device, dtype)) for images in parts])
        if not (finite := vectors.isfinite().all(1)).all():
            index = int((~finite).nonzero()[0]) + (rows.start or 0)
            raise ValueError(f"similarity: the descriptor of training image {index} of {self.source} is not finite")
        return vectors

    def stored(self, descriptor: Any) -> StoredVectors | None:
        """Returns the folder of a descriptor's vectors on disk; None if they are not kept.

        Raises:
            ValueError: where others' vectors are kept there.
        """
        identity = getattr(descriptor, "identity", None)
        return None if self.cache is None or identity is None else StoredVectors(self, identity)

    def digest(self) -> str:
        """A hash of images, captions and multiplicity: it names the bank in a run's record."""
        if self._digest is None:
            content = hashlib.blake2b(self.images.cpu().contiguous().numpy(), digest_size=16)
            content.update(repr((self.all_captions, self.multiplicity.tolist())).encode())
            self._digest = content.hexdigest()
        return self._digest

    def keys(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Images and their square norms on the queries' device; float64 stays, half precision becomes float32."""
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        if (self._flat.device, wanted) == (device, self._flat.dtype):
            return self._flat, self._square_norms
        if (device, wanted) not in self._copies:
            keys = self._flat.to(device, wanted)
            self._copies[device, wanted] = keys, square_norms(keys)
        return self._copies[device, wanted]


def _captions(captions: str | Sequence[str] | None, row: int) -> Sequence[str]:
    """The captions of an image's occurrences, "" for one without."""
    listed = list(captions) or [""] if isinstance(captions, (list, tuple)) else [captions or ""]
    for caption in listed:
        if not isinstance(caption, str):
            raise ValueError(f"captions of the bank must be text, row {row} has {caption!r} ({type(caption).__name__})")
    return listed
