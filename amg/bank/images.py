"""Encoded images as arrays and tensors: the one place in which all sources are decoded."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from amg.tensors import floats

Size = int | tuple[int, int] | None
"""Side of a square, or (height, width), in pixels; None keeps an image's own."""
NO_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow lists, but hands to other programs (EPS to Ghostscript) or cannot decode."""
UNDECODED = (".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".heic", ".heif", ".jxl", ".nef", ".orf", ".svg", ".wmf")
"""Suffixes of images that Pillow alone does not decode: counted among those that cannot be read."""
LISTED = 5


class UnreadableImage(ValueError):
    """An image that cannot be decoded; its text is the reason."""


class BankNote(UserWarning):
    """Images that are left out of a bank, and images without caption.

    Args:
        path: of the data.
        unread: names of images that cannot be read, each with its reason; LISTED of them are told.
        broken: how many cannot be read.
        total: images of the source.
        bare: images without caption among those read.
        captions_in: where captions are looked for.
    """

    def __init__(
        self, path: str, unread: tuple[str, ...], broken: int, total: int, bare: int = 0, captions_in: str = ""
    ):
        super().__init__(path, unread, broken, total, bare, captions_in)  # so that it can be pickled
        self.path, self.unread, self.broken, self.total = path, unread, broken, total
        self.bare, self.captions_in = bare, captions_in

    def __str__(self) -> str:
        notes = []
        if self.broken:
            more = f" and {self.broken - LISTED} more" if self.broken > LISTED else ""
            listed = ", ".join(self.unread[:LISTED]) + more
            notes.append(f"{self.broken} of {self.total} images cannot be read and are left out: {listed}")
        if self.bare:
            read = self.total - self.broken
            notes.append(f"{self.bare:,} of {read:,} images have no caption (captions are {self.captions_in})")
        return f"{self.path}: {'; '.join(notes)}"


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
    """Height and width as an image's first bytes say them, upright; None where they say nothing. Nothing is decoded."""
    try:
        with _opened(data) as image:
            # Pillow decodes a PNG to its end to look for an EXIF block behind the pixels
            exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            turned = exif.get(0x0112, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
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
    return floats(torch.from_numpy(pixels).permute(2, 0, 1))
