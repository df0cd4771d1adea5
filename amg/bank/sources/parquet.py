"""Parquet files in the layout of image data sets on the hub: an image column of {bytes, path} structs."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
CAPTION_COLUMNS = ("captions", "caption", "text", "prompt")


def read_parquet(path: str | Path, size: int | None = None) -> tuple[Tensor, list[str] | None]:
    """Reads a Parquet file, or all of a folder.

    A row with a list of captions stands for as many repeats of its picture.

    Args:
        path: a `.parquet` file or a folder of them.
        size: side of the squares to return; None keeps the pictures' own, which must then be equal.
    Returns:
        images (N, 3, size, size) in [−1, 1] and captions, None where there is no caption column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no Parquet file at {path}: give a .parquet file or a folder that holds some")
    images, captions = [], []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is no readable Parquet file (truncated?): {error}") from None
        image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
        if image is None:
            raise ValueError(f"{file} has no image column; it has {', '.join(table.column_names)}")
        caption = next((name for name in CAPTION_COLUMNS if name in table.column_names), None)
        for i, row in enumerate(table.select([image] + [caption] * (caption is not None)).to_pylist()):
            names = row[caption] if caption else None
            names = (names or [None]) if isinstance(names, list) else [names]
            data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
            try:
                picture = decode(data, size)
            except (TypeError, OSError) as error:
                raise ValueError(f"{file}, row {i}: its {image} column holds no readable picture: {error}") from None
            images += [picture] * len(names)
            captions += [name or "" for name in names]
    if not images:
        raise ValueError(f"{path} holds no rows: a bank needs at least one picture")
    return stack(images, path), captions if any(captions) else None


def decode(data: bytes, size: int | None) -> Tensor:
    """One encoded picture as (3, H, W) in [−1, 1]; resized by averaging to a square where a size is given."""
    import numpy as np
    from PIL import Image

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
