"""Encoded images as arrays and tensors: the one place in which all readers decode, skip, merge and count."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from amg.bank.room import check_room

Size = int | tuple[int, int] | None
"""Side of a square, or (height, width), in pixels; None keeps an image's own."""
NO_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow lists, but hands to other programs (EPS to Ghostscript) or cannot decode."""
UNDECODED = (".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".heic", ".heif", ".jxl", ".nef", ".orf", ".svg", ".wmf")
"""Suffixes of images that Pillow alone does not decode: counted among those that cannot be read."""
LISTED = 5


@dataclass(frozen=True)
class Item:
    """One image of a source."""

    name: str
    """For messages."""
    data: bytes | Path | None
    """The encoded image, or its file."""
    captions: Sequence[str]
    """Each stands for one occurrence in the training set; "" is an occurrence without caption."""


class UnreadableImage(ValueError):
    """An image that cannot be decoded; its text is the reason."""


class BankNote(UserWarning):
    """Images that are left out of a bank, and images without caption.

    Args:
        path: of the data.
        unread: names of the images that cannot be read, each with its reason.
        total: images of the source.
        bare: images without caption among those read.
        captions_in: where captions are looked for.
    """

    def __init__(self, path: str, unread: tuple[str, ...], total: int, bare: int = 0, captions_in: str = ""):
        super().__init__(path, unread, total, bare, captions_in)  # so that it can be pickled
        self.path, self.unread, self.total, self.bare, self.captions_in = path, unread, total, bare, captions_in

    def __str__(self) -> str:
        notes = []
        if self.unread:
            more = f" and {len(self.unread) - LISTED} more" if len(self.unread) > LISTED else ""
            listed = ", ".join(self.unread[:LISTED]) + more
            notes.append(f"{len(self.unread)} of {self.total} images cannot be read and are left out: {listed}")
        if self.bare:
            notes.append(self.without_caption)
        return f"{self.path}: {'; '.join(notes)}"

    @property
    def without_caption(self) -> str:
        """The second part of the note."""
        read = self.total - len(self.unread)
        return f"{self.bare:,} of {read:,} images have no caption (captions are {self.captions_in})"


def load(
    path: Path, items: Iterable[Item], total: int, size: Size, captions_in: str | None, copies: float = 1
) -> tuple[Tensor, list[list[str]]]:
    """Distinct images of a source with the captions of all their occurrences.

    What cannot be read is left out; one `BankNote` counts it, and the images without caption. Memory is asked for
    before the first image is decoded, and holds one copy of the images.

    Args:
        path: of the data, for messages.
        items: at most `total` of them.
        size: that images are resized to; None keeps their own, which must then be equal.
        captions_in: where captions are looked for, in words; None where images need none.
        copies: of all images that the caller will hold at once.
    Returns:
        images (N, 3, H, W) in [−1, 1] and the captions of each, "" for an occurrence without.
    Raises:
        ValueError: for images of several sizes, where none can be read, or where memory is too small.
    """
    shape = height_width(size)
    images, captions, rows = None, [], {}
    unread, seen, bare = [], 0, 0
    for item in items:
        seen += 1
        if images is None and (first := shape or header(item.data)):
            check_room(total, *first, copies)
        try:
            pixels = decode_pixels(item.data, shape)
        except UnreadableImage as error:
            unread.append(f"{item.name} ({error})")
            continue
        if images is None:
            images = torch.empty(total, 3, *pixels.shape[:2])  # pages that stay unused are never taken
        if pixels.shape[:2] != images.shape[2:]:
            here, there = (f"{height}×{width}" for height, width in (pixels.shape[:2], images.shape[2:]))
            raise ValueError(
                f"{path}: images of several sizes (height×width), {item.name} of {here} after {there}: set data.size "
                "to one side, or to [height, width]"
            )
        bare += not any(item.captions)
        row = rows.setdefault(hashlib.blake2b(pixels.data, digest_size=16).digest(), len(rows))
        if row < len(captions):
            captions[row] += item.captions
        else:
            images[row] = _tensor(pixels)
            captions.append(list(item.captions))
    if images is None:
        raise ValueError(f"{path}: none of {seen} images can be read, e.g. {', '.join(unread[:1])}")
    bare = 0 if captions_in is None else bare
    if unread or bare:
        warnings.warn(BankNote(str(path), tuple(unread), seen, bare, captions_in or ""), stacklevel=5)
    return images[: len(captions)], captions


def decode(data: bytes | Path | Image.Image | None, size: Size = None) -> Tensor:
    """Decodes one image, encoded or Pillow's, to (3, H, W) in [−1, 1]; resized by averaging where a size is given.

    Raises:
        UnreadableImage: as `decode_pixels`.
    """
    return _tensor(decode_pixels(data, height_width(size)))


def decode_pixels(data: bytes | Path | Image.Image | None, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes one image to 8-bit RGB, (H, W, 3), upright, as viewers show it.

    EXIF orientation is applied, transparency is composed on white, and 16-bit grey becomes 8-bit grey. Of an animation
    the first frame counts.

    Raises:
        UnreadableImage: for a corrupt image, none, one of too many pixels, or one of 32-bit values.
    """
    try:
        with _opened(data) as image:
            image.load()
            image = _rgb(_upright(image))
            if shape is not None and image.size != shape[::-1]:
                image = image.resize(shape[::-1], Image.Resampling.BOX)
            return np.array(image)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything for corrupt bytes
        raise UnreadableImage(type(error).__name__) from None


def header(data: bytes | Path | None) -> tuple[int, int] | None:
    """Height and width as an image's first bytes say them; None where they say nothing. Nothing is decoded."""
    try:
        with _opened(data) as image:
            return image.height, image.width
    except Exception:
        return None


def height_width(size: Size) -> tuple[int, int] | None:
    """A size as (height, width).

    Raises:
        ValueError: for anything else.
    """
    sides = list(size) if isinstance(size, (tuple, list)) else [size, size]
    if sides == [None, None]:
        return None
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise ValueError(f"data.size: expected a side in pixels, [height, width] or null, got {size!r}")
    return sides[0], sides[1]


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of images in lower case: those of the formats that Pillow decodes here, and UNDECODED."""
    listed = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in listed if name in _formats()) | frozenset(UNDECODED)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_IMAGES)


def _opened(data: bytes | Path | Image.Image | None) -> Image.Image:
    if isinstance(data, Image.Image):
        return data.copy()
    return Image.open(data if isinstance(data, Path) else io.BytesIO(data or b""), formats=_formats())


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block spoils no pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("32-bit floats, whose range is unknown")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit integers beyond 16 bits")
        if image.mode != "I" or values.max() > 255:
            values = (values + 128) // 257
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(127.5).sub_(1)
