"""Parquet files in the layout of image data sets on the hub: an image column of {bytes, path} structs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from amg.bank.images import UNREADABLE, decode, stack, tell_skipped
from amg.bank.room import check_room

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
CAPTION_COLUMNS = ("captions", "caption", "text", "prompt")
ROWS = 256
"""Rows decoded at once, so that encoded pictures do not fill memory beside decoded ones."""


def read_parquet(path: str | Path, size: int | None = None) -> tuple[Tensor, list[str] | None]:
    """Reads a Parquet file, or all of a folder.

    A row with a list of captions stands for as many repeats of its picture. Pictures that cannot be read are left out,
    with one warning that counts and lists them.

    Args:
        path: a `.parquet` file or a folder of them.
        size: side of the squares to return; None keeps the pictures' own, which must then be equal.
    Returns:
        images (N, 3, size, size) in [−1, 1] and captions, None where there is no caption column.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the mend.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no Parquet file at {path}: give a .parquet file or a folder that holds some")
    total = sum(_repeats(file) for file in files)
    images, captions, broken, seen = [], [], [], 0
    for file in files:
        for i, (data, names) in enumerate(_rows(file)):
            seen += 1
            try:
                picture = decode(data, size)
            except UNREADABLE as error:
                broken.append(f"{file.name}, row {i} ({type(error).__name__})")
                continue
            if not images:
                check_room(total, *picture.shape[1:])
            images += [picture] * len(names)
            captions += names
    if not seen:
        raise ValueError(f"{path} holds no rows: a bank needs at least one picture")
    tell_skipped(path, broken, seen)
    return stack(images, path), captions if any(captions) else None


def _rows(file: Path) -> Iterator[tuple[Any, list[str]]]:
    """Each row's encoded picture and captions, "" where it has none."""
    table, image, caption = _open(file)
    with _readable(file):
        for batch in table.iter_batches(ROWS, columns=[image] + [caption] * (caption is not None)):
            for row in batch.to_pylist():
                data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
                names = row[caption] if caption else None
                yield data, [name or "" for name in (names or [None] if isinstance(names, list) else [names])]


def _repeats(file: Path) -> int:
    """Pictures in a file, one per caption, without reading any."""
    table, _, caption = _open(file)
    if caption is None:
        return table.metadata.num_rows
    with _readable(file):
        names = table.read(columns=[caption])[caption].to_pylist()
    return sum(max(len(some), 1) if isinstance(some, list) else 1 for some in names)


def _open(file: Path) -> tuple[Any, str, str | None]:
    """A file with the names of its image and caption columns."""
    import pyarrow.parquet as pq

    with _readable(file):
        table = pq.ParquetFile(file)
    columns = table.schema_arrow.names
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if image is None:
        raise ValueError(f"{file} has no image column; it has {', '.join(columns)}")
    return table, image, next((name for name in CAPTION_COLUMNS if name in columns), None)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no readable Parquet file (truncated?): {str(error).splitlines()[0]}") from None
