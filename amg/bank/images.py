"""What all readers do with encoded pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

UNREADABLE = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a corrupt picture, for none, or for one of so many pixels that it will not decode it."""
LISTED = 5


class SkippedPictures(UserWarning):
    """Pictures that could not be read and are left out.

    Args:
        path: of the data.
        names: of the pictures, each with its reason.
        total: pictures found.
    """

    def __init__(self, path: str, names: tuple[str, ...], total: int):
        super().__init__(path, names, total)  # so that it can be pickled
        self.path, self.names, self.total = path, names, total

    def __str__(self) -> str:
        more = f" and {len(self.names) - LISTED} more" if len(self.names) > LISTED else ""
        listed = ", ".join(self.names[:LISTED]) + more
        return f"{self.path}: {len(self.names)} of {self.total} pictures cannot be read and are left out: {listed}"


def decode(data: bytes, size: int | None) -> Tensor:
    """One encoded picture as (3, H, W) in [−1, 1]; resized by averaging to a square where a size is given."""
    import numpy as np

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def stack(images: Iterable[Tensor], path: Path) -> Tensor:
    """Stacks pictures of equal size, or says how to make them equal."""
    images = list(images)
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) != 1:
        raise ValueError(f"{path}: pictures of {len(shapes)} sizes, e.g. {shapes[:3]}: set data.size to one side")
    return torch.stack(images)


def tell_skipped(path: Path, broken: list[str], total: int) -> None:
    """Warns once of the pictures that were left out.

    Raises:
        ValueError: where none is left.
    """
    if len(broken) == total:
        raise ValueError(f"{path}: none of {total} pictures can be read, e.g. {broken[0]}")
    if broken:
        warnings.warn(SkippedPictures(str(path), tuple(broken), total), stacklevel=5)
