"""The training set made searchable: where its images lie, captions, multiplicity, descriptors."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amg.bank.blocks import Blocks
from amg.bank.cache import cache_folder
from amg.bank.exact import nearest, square_norms
from amg.bank.images import LISTED, BankNote, Size, height_width
from amg.bank.rows import VERIFIED, Rows, digest_of, digest_of_json, table_of
from amg.bank.sources import opened
from amg.bank.vectors import StoredVectors
from amg.bank.view import View
from amg.tensors import floats

HELD = 2**30
"""Bytes of float32 pixels, or of vectors, up to which they are held in memory; beyond, they are searched on disk."""
PIXELS = 256
"""Images per block of pixels."""


def find(path: str | Path, kind: str | None = None) -> None:
    """Checks that something is there, without reading it.

    Raises:
        FileNotFoundError: in one line.
    """
    from amg.bank.images import suffixes
    from amg.bank.sources.base import expanded

    path = Path(os.path.expanduser(path))
    if kind == "datasets" or path.is_file() or (path / "bank.json").is_file() or expanded(path):
        return
    held = {*suffixes(), ".parquet", ".tar", ".arrow", ".lance"}
    names = (name for _, folders, files in os.walk(path) for name in (*folders, *files))
    if not any(os.path.splitext(name)[1].lower() in held for name in names):
        raise FileNotFoundError(f"data.path: no images in {path}: name a folder of images with captions")


class TrainingBank:
    """Distinct training images with their captions.

    Exact repeats of an image are merged: it is one entry, with its multiplicity and all its captions, so that repeats
    count once in a k-NN mean. `build` and `open` keep it in a folder: in memory are only the parts that are looked at.
    Images are decoded when somebody looks at them; only pixel similarities keep pixels, 8 bits each.

    `captions[i]`, `all_captions[i]`, `keys[i]` and `pictures[i]` are the first caption ("" where there is none), all
    captions (most frequent first), the name and the image, (3, H, W) in [−1, 1], of entry i; `pictures[rows]` are
    several, (n, 3, H, W).

    Args:
        rows: see `amg.bank.rows`.
        images: (N, 3, H, W), floats in [−1, 1] or 8 bits; None decodes them from where they lie.
        size: that images are decoded to, see `from_folder`.
        cache: where descriptors are kept on disk if the rows have no folder: a folder, "auto", or None for nowhere.
    """

    def __init__(
        self,
        rows: Rows,
        images: Tensor | None = None,
        size: Size = None,
        cache: str | Path | None = None,
        source: str = "",
    ):
        self.rows, self.size, self.cache = rows, height_width(size), cache
        self.source = source or rows.name
        self.note = ""  # what a table should say of it, e.g. how many images of a list it has
        self.keys = View(len(rows), lambda some: [row["key"] for row in self._look(some, ["key"])])
        self.all_captions = View(len(rows), self._captions)
        self.captions = View(len(rows), lambda some: [texts[0] if texts else "" for texts in self._captions(some)])
        self._images = images
        self._vectors: dict[Any, Tensor] = {}
        self._pixel_keys: dict[tuple, tuple[Tensor, Tensor]] = {}

    @classmethod
    def build(
        cls,
        path: str | Path,
        source: str | Path,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        kind: str | None = None,
        size: Size = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> TrainingBank:
        """Reads a training set of any size into a folder, or goes on with what is missing there, and opens it.

        Every image is read once and its header alone is decoded. A source that has grown is appended: a folder by its
        new images, others at their end. Rows that are there keep their numbers.

        Args:
            path: the bank's folder.
            source: a folder of images, tars (`shards/{00000..01023}.tar`), Parquet, what `datasets` saved, Lance; with
                kind="datasets" a name on the hub. See `amg.bank.sources`.
            image_column, caption_column: names of columns; None takes the usual ones.
            split, revision: of a data set that has several.
            kind: expects a kind of source; None looks at what is there.
            size: as `from_folder`'s.
            on_rows: told how many rows were read, now and then.
        Raises:
            FileNotFoundError, ValueError, ImportError: one line that names the file and the fix.
        """
        path = Path(os.path.expanduser(path))
        found = opened(source, kind, image_column, caption_column, split, revision)
        rows = Rows.build(path, found, on_rows=on_rows, grow=True)
        if size is not None:
            rows.remember(size=height_width(size))
        return cls._told(cls(rows, size=rows.info.get("size")))

    @classmethod
    def open(cls, path: str | Path, size: Size = None) -> TrainingBank:
        """Opens a bank that `build` made; reads nothing but its manifest.

        Args:
            size: that images are decoded to; None takes that of `build`.
        Raises:
            FileNotFoundError, ValueError: where there is none, or none that is whole.
        """
        rows = Rows.open(Path(os.path.expanduser(path)))
        return cls(rows, size=size or rows.info.get("size"))

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        captions: Sequence[str | Sequence[str] | None] | None = None,
        source: str = "memory",
        cache: str | Path | None = None,
    ) -> TrainingBank:
        """Holds images in memory; merges exact repeats.

        Args:
            images: (N, 3, H, W), floats in [−1, 1], or 8 bits, which stay 8 bits.
            captions: N captions, one per row; "" or None where an image has none. A list of captions stands for as
                many occurrences of its image.
            source: where they come from, in words.
            cache: as the class's.
        Raises:
            ValueError: for another shape, range, number or type of captions, or for an empty bank.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"bank images must be (N, 3, H, W) with N > 0, got {tuple(images.shape)}")
        eight_bits = images.dtype == torch.uint8
        if not images.is_floating_point() and not eight_bits:
            raise ValueError(f"bank images must be floats in [-1, 1] or uint8, got {images.dtype}")
        lo, hi = images.min().item(), images.max().item()
        if lo != lo:
            raise ValueError("bank images hold NaN: leave those images out")
        if not eight_bits and (lo < -1.001 or hi > 1.001):
            raise ValueError(
                f"bank images must lie in [-1, 1], got [{lo:.2f}, {hi:.2f}]: divide 8-bit values by 127.5, subtract 1"
            )
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"the bank got {len(images)} images and {len(captions)} captions: one caption each")
        listed = [_texts(some, i) for i, some in enumerate([""] * len(images) if captions is None else captions)]
        images = images.contiguous() if eight_bits else images.detach().float().contiguous()
        digests = [digest_of(picture.tobytes()) for picture in images.cpu().numpy()]
        rows = Rows.of_tables(table_of(digests, listed, *images.shape[2:]))
        if len(rows) < len(images):  # without repeats a copy would double the memory
            images = images[torch.from_numpy(rows.entries).to(images.device)]
        return cls(rows, images, cache=cache, source=source)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        size: Size = None,
        deduplicate: float | None = None,
        cache: str | Path | None = "auto",
        image_column: str | None = None,
        caption_column: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        kind: str | None = None,
        captioned: bool = True,
    ) -> TrainingBank:
        """Images of a folder with their captions, or of any other source that `build` takes.

        They are read once and kept below the cache, as `build` does; the first 20,000 are decoded to their end then.
        The bank of a source that has changed is made anew. One warning counts the images that cannot be read and those
        without caption. Transparent images are composed on white, deep grey ones scaled to 8 bits, and turned as their
        EXIF says.

        Args:
            size: side of the squares that images are made, or (height, width); None keeps their own, which pixel
                similarities need to be equal.
            deduplicate: threshold of `amg.bank.dedupe`, 1.0 in the paper; None keeps all.
            cache: where the bank is kept, with its descriptors: a folder, or "auto" for one below $AMG_CACHE, else
                ~/.cache/amg; None keeps everything in memory.
            image_column, caption_column, split, revision, kind: as `build`'s.
            captioned: counts images without caption in the warning.
        """
        from amg.bank.sources.folder import download_note

        height_width(size)
        found = opened(path, kind, image_column, caption_column, split, revision)
        if cache is None:
            rows = Rows.read(found)
        else:
            name = digest_of_json([os.path.abspath(os.path.expanduser(path)), found.spec, found.stamp()])
            folder = cache_folder() / "banks" / name if cache == "auto" else cache_folder(cache)
            try:
                rows = Rows.build(folder, found, VERIFIED)
            except FileNotFoundError:
                raise
            except OSError as error:
                why = f"{error.strerror} (data.cache names another folder, data.cache=null keeps everything in memory)"
                raise OSError(error.errno, why, str(folder)) from None
        bank = cls._told(cls(rows, size=size, source=str(path)), captioned)
        bank.note = download_note(path, lambda: int(bank.multiplicity.sum()))
        if deduplicate is None:
            return bank
        from amg.bank.dedupe import dedupe

        return dedupe(bank, deduplicate)

    @classmethod
    def _told(cls, bank: TrainingBank, captioned: bool = True) -> TrainingBank:
        """Warns of what is left out and what has no caption; refuses a bank without an image."""
        counts = bank.counts
        unread = tuple(name for name, _ in zip(bank.rows.unread(), range(LISTED), strict=False))
        if not len(bank):
            images = counts["images"]
            raise ValueError(f"{bank.source}: none of {images} images can be read, e.g. {', '.join(unread[:1])}")
        bare = counts["without caption"] if captioned else 0
        if counts["broken"] or bare:
            captions_in = bank.rows.info.get("captions_in", "")
            note = BankNote(bank.source, unread, counts["broken"], counts["images"], bare, captions_in)
            warnings.warn(note, stacklevel=4)
        return bank

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def folder(self) -> Path | None:
        """Folder of the bank; None in memory."""
        return self.rows.path

    @property
    def counts(self) -> dict[str, int]:
        """Counts images, entries (distinct ones), repeats, broken ones, and those without caption."""
        counts = self.rows.info["counts"]
        return counts | {"broken": counts["broken"] + len(self.broken)}

    @property
    def grown(self) -> dict[str, int]:
        """Digests that it had before it grew, each with its entries then."""
        return self.rows.info.get("grown", {})

    @property
    def broken(self) -> dict[int, str]:
        """Entries that turned out to be broken when they were decoded, and the reason; no search answers them."""
        return self.rows.broken()

    @cached_property
    def multiplicity(self) -> Tensor:
        """Number of times that each entry occurs, (N,)."""
        return torch.from_numpy(self.rows.multiplicity)

    @property
    def pictures(self) -> View:
        """Images, decoded when they are asked for."""

        def join(some: Tensor | list[Tensor]) -> Tensor:
            return some if isinstance(some, Tensor) else torch.stack(some)

        return View(len(self), self._pictures, join, self.digest())

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of all images.

        Raises:
            ValueError: where they differ.
        """
        if self._images is not None:
            return tuple(self._images.shape[1:])
        if self.size:
            return 3, *self.size
        shapes = self.rows.info["shapes"]
        if len(shapes) > 1:
            (h, w, _), (height, width, key) = shapes[:2]
            raise ValueError(
                f"{self.source}: images of several sizes (height×width), {key} of {height}×{width} after {h}×{w}: set "
                "data.size to one side, or to [height, width]"
            )
        return 3, *shapes[0][:2]

    def subset(self, index: Tensor) -> TrainingBank:
        """Some entries, with their captions and multiplicity."""
        chosen = index.cpu().numpy()
        number = np.full(len(self), -1)
        number[chosen] = np.arange(len(chosen))
        repeats = np.array(self.rows.repeats)
        repeats = np.stack([number[repeats[:, 0]], repeats[:, 1]], 1)[number[repeats[:, 0]] >= 0]
        repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
        some = hashlib.blake2b(np.ascontiguousarray(chosen), digest_size=16).hexdigest()
        info = self.rows.info | {
            "entries": len(chosen),
            "digest": digest_of_json([self.rows.info["digest"], some]),
            "counts": self.rows.info["counts"] | {"entries": len(chosen)},
            "grown": {},
        }
        rows = Rows(self.rows.table, np.array(self.rows.entries)[chosen], repeats, info, self.rows.source)
        images = None if self._images is None else self._images[index.to(self._images.device)]
        bank = TrainingBank(rows, images, self.size, "auto" if self.folder else self.cache, self.source)
        bank.note = self.note
        return bank

    # -- pixels ------------------------------------------------------------------------------------------------------

    def pixels(self, index: Tensor | None = None) -> Tensor:
        """Flattened images, (n, 3·H·W) in [−1, 1]; of all, floats or 8 bits as they are held."""
        held = self._held().flatten(1)
        return held if index is None else floats(held[index.to(held.device)])

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k nearest training images in pixel space, exact.

        Args:
            queries: (B, 3, H, W), the bank's size.
            k: 1 … len(bank).
        Returns:
            ℓ2 distances (B, k), ascending, and indices (B, k).
        """
        if queries.shape[1:] != self.shape:
            raise ValueError(
                f"queries are {tuple(queries.shape[1:])} but the bank's images {self.shape}: "
                f"load the bank with size={tuple(queries.shape[2:])}"
            )
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1 … {len(self)} (the bank's distinct images), got {k}")
        keys, norms = self.pixel_keys(queries.device, queries.dtype)
        distances, indices = nearest(queries.flatten(1).to(norms.dtype), keys, norms, k)
        return distances.to(queries.dtype), indices

    def pixel_keys(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Flattened images and their square norms on the queries' device; float64 stays, half precision is float32.

        More than `HELD` bytes stay 8-bit pixels where they lie.
        """
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        if (device, wanted) not in self._pixel_keys:
            keys = self.pixels()
            if keys.dtype == torch.uint8 and 4 * keys.numel() > HELD:
                keys = keys if device.type == "cpu" else keys.to(device)
            else:
                keys = floats(keys.to(device)).to(wanted)
            norms = square_norms(keys, wanted)
            for entry in self.broken:
                norms[entry] = torch.inf
            self._pixel_keys[device, wanted] = keys, norms
        return self._pixel_keys[device, wanted]

    def _held(self) -> Tensor:
        """The images that pixel similarities compare with, (N, 3, H, W): memory-mapped where the bank has a folder."""
        if self._images is None:
            name = "x".join(map(str, self.shape[1:]))
            if self.folder is None:
                self._images = torch.cat([self._block(range(len(self)))])
            else:
                blocks = Blocks(self.folder / "pixels" / f"{name}.npy", np.uint8, (len(self), *self.shape), PIXELS)
                if blocks.missing():
                    before = {self.grown[old] for old in self.grown if self.grown[old] % PIXELS}
                    blocks.allocate(max(before, default=0))
                for number in blocks.missing():
                    rows = blocks.rows(number)
                    blocks.write(number, self._block(range(rows.start, rows.stop)).numpy())
                self._images = blocks.load()
        return self._images

    def _block(self, entries: Sequence[int]) -> Tensor:
        """8-bit images, (n, 3, H, W); what is broken is grey."""
        found, (_, *shape) = [], self.shape
        for entry, pixels in zip(entries, self._decoded(entries), strict=True):
            pixels = np.full((*shape, 3), 127, np.uint8) if isinstance(pixels, str) else pixels
            if list(pixels.shape[:2]) != shape:
                here, there = (f"{height}×{width}" for height, width in (pixels.shape[:2], shape))
                raise ValueError(f"{self.source}: {self.keys[entry]} is {here}, its header says {there}: set data.size")
            found.append(torch.from_numpy(pixels).permute(2, 0, 1))
        return torch.stack(found)

    def _decoded(self, entries: Sequence[int]) -> Iterator[np.ndarray | str]:
        """8-bit images, (H, W, 3); the reason where one is broken, which is kept."""
        broken = {}
        for entry, pixels in zip(entries, self.rows.decoded(entries, self.size), strict=True):
            if isinstance(pixels, str):
                broken[int(entry)] = pixels
            yield pixels
        if broken:
            self.rows.report(broken)

    def _pictures(self, entries: Sequence[int]) -> Tensor | list[Tensor]:
        if self._images is not None:
            every = isinstance(entries, range) and len(entries) == len(self)
            return floats(self._images if every else self._images[torch.as_tensor(entries)])
        grey = np.full((*(self.size or (32, 32)), 3), 127, np.uint8)
        return [
            floats(torch.from_numpy(grey if isinstance(pixels, str) else pixels).permute(2, 0, 1))
            for pixels in self._decoded(entries)
        ]

    # -- descriptors -------------------------------------------------------------------------------------------------

    def vectors(self, descriptor: Any, device: torch.device, dtype: torch.dtype, batch: int = 64) -> Tensor:
        """Descriptors of all images, (N, D): `descriptor.descriptors(images)`, computed once.

        Where the bank has a place on disk and the descriptor an `identity`, they are kept there in float16; float64 is
        computed anew. Kept ones of more than `HELD` bytes in float32 stay float16, on a CPU memory-mapped.
        """
        key = descriptor, device, dtype
        if key not in self._vectors:
            stored = None if dtype == torch.float64 else self.stored(descriptor)
            if stored is None:
                found = self.describe(descriptor, slice(None), device, dtype, batch).to(device, dtype)
            else:
                missing = len(stored.missing()) * stored.rows(0).stop
                if missing > VERIFIED and not self.rows.imageless:
                    have = ", ".join(stored.others) or "none"
                    raise ValueError(
                        f"data.path: {self.source} lacks the vectors of {stored.folder.name} (it has {have}): "
                        "bank.embed computes them first; or choose the descriptor and preprocessing that it has"
                    )
                self.embed(descriptor, device, batch)
                found = stored.load()
                found = found.to(device, dtype if 4 * found.numel() <= HELD else torch.float16)
            self._vectors[key] = found
        return self._vectors[key]

    def embed(
        self,
        descriptor: Any,
        device: str | torch.device = "cpu",
        batch: int = 64,
        on_images: Callable[[int], None] | None = None,
    ) -> None:
        """Computes what is missing of a descriptor's vectors on disk, block by block; killed, the next call goes on.

        Args:
            descriptor: as `vectors`'s, with an `identity`.
            device: where it runs.
            batch: images at once.
            on_images: told how many were embedded, block by block.
        """
        stored = self.stored(descriptor)
        if stored is None:
            raise ValueError("bank.embed: the bank has no place on disk, or the descriptor no identity")
        for number in stored.missing():
            rows = stored.rows(number)
            stored.write(number, self.describe(descriptor, rows, torch.device(device), torch.float32, batch))
            if on_images is not None:
                on_images(rows.stop - rows.start)

    def describe(
        self, descriptor: Any, rows: slice, device: torch.device, dtype: torch.dtype, batch: int = 64
    ) -> Tensor:
        """Descriptors of some images, (n, D); 0 for a broken one."""
        start, stop, _ = rows.indices(len(self))
        if self.rows.imageless:
            found = torch.from_numpy(self.rows.vectors(start, stop)).to(device, dtype)
            return torch.nn.functional.normalize(found, dim=1)
        return self.describe_images(descriptor, start, self.decoded(range(start, stop)), device, dtype, batch)

    @torch.no_grad()
    def describe_images(
        self,
        descriptor: Any,
        first: int,
        images: Iterable[Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 64,
    ) -> Tensor:
        """Descriptors of images that are already decoded, (n, D).

        Args:
            first: entry of the first image.
            images: see `decoded`.
            batch: images of one size that are described at once.
        """
        found: dict[int, Tensor] = {}
        waiting: list[Tensor] = []
        places: list[int] = []

        def flush() -> None:
            described = descriptor.descriptors(floats(torch.stack(waiting).to(device)).to(dtype))
            if not (finite := described.isfinite().all(1)).all():
                entry = first + places[int((~finite).nonzero()[0])]
                raise ValueError(f"similarity: the descriptor of training image {entry} of {self.source} is not finite")
            found.update(zip(places, described, strict=True))
            waiting.clear()
            places.clear()

        total = 0
        for place, image in enumerate(images):
            total += 1
            if image is None:
                continue
            if waiting and (len(waiting) == batch or waiting[0].shape != image.shape):
                flush()
            waiting.append(image)
            places.append(place)
        if waiting:
            flush()
        if not found:
            raise ValueError(f"data.path: none of images {first} to {first + total - 1} of {self.source} can be read")
        nothing = torch.zeros_like(next(iter(found.values())))
        return torch.stack([found.get(place, nothing) for place in range(total)])

    def decoded(self, entries: Sequence[int]) -> Iterator[Tensor | None]:
        """Images as they are held, (3, H, W): floats or 8 bits, each of its own size; None for a broken one."""
        if self._images is not None:
            broken = self.broken
            yield from (None if entry in broken else self._images[entry] for entry in entries)
        else:
            for pixels in self._decoded(entries):
                yield None if isinstance(pixels, str) else torch.from_numpy(pixels).permute(2, 0, 1)

    def stored(self, descriptor: Any) -> StoredVectors | None:
        """Returns the folder of a descriptor's vectors on disk; None if they are not kept.

        Raises:
            ValueError: where others' vectors are kept there.
        """
        identity = getattr(descriptor, "identity", None)
        nowhere = self.cache is None and self.folder is None
        return None if nowhere or identity is None else StoredVectors(self, identity)

    def digest(self) -> str:
        """A hash of images, captions and multiplicity: it names the bank in a run's record."""
        digest = self.rows.info["digest"]
        return digest_of_json([digest, self.size]) if self.size else digest

    # -- captions ----------------------------------------------------------------------------------------------------

    def _look(self, entries: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        return self.rows.look([int(self.rows.entries[entry]) for entry in entries], columns)

    def _captions(self, entries: Sequence[int]) -> list[tuple[str, ...]]:
        wanted = [entry for entry in dict.fromkeys(entries) if entry not in self._known]
        if len(self._known) + len(wanted) > 100_000:
            self._known.clear()
            wanted = list(dict.fromkeys(entries))
        self._known.update(zip(wanted, self.rows.captions(wanted), strict=True))
        return [self._known[entry] for entry in entries]

    @cached_property
    def _known(self) -> dict[int, tuple[str, ...]]:
        """Captions that were asked for: a chain asks for the same neighbours again and again."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """A bank with a folder is opened again by the process that gets it."""
        names = ("rows", "size", "cache", "source", "note", "_images")
        state = {name: getattr(self, name) for name in names}
        return state | {"_images": None} if self.folder else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["rows"], state["_images"], state["size"], state["cache"], state["source"])
        self.note = state["note"]


def _texts(captions: str | Sequence[str] | None, row: int) -> Sequence[str]:
    """The captions of an image's occurrences, "" for one without."""
    listed = list(captions) or [""] if isinstance(captions, (list, tuple)) else [captions or ""]
    for caption in listed:
        if not isinstance(caption, str):
            raise ValueError(f"captions of the bank must be text, row {row} has {caption!r} ({type(caption).__name__})")
    return listed
