"""Parquet files in the layout of image data sets on the hub: an image column of {bytes, path} structs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from amg.bank.images import Item, Size, load
from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
ROWS = 32
"""Rows read at once, so that encoded images do not fill memory beside decoded ones."""


def read_parquet(path: str | Path, size: Size = None, copies: float = 1) -> tuple[Tensor, list[list[str]]]:
    """Reads a Parquet file, or all of a folder.

    A row with a list of captions stands for as many occurrences of its image. Images that cannot be read are left out,
    with one warning that counts them and those without caption.

    Args:
        path: a `.parquet` file or a folder of them.
        size, copies: as `amg.bank.folder.read_folder`'s.
    Returns:
        distinct images (N, 3, H, W) in [−1, 1] and the captions of each, "" for an occurrence without.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the fix.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no Parquet file at {path}: give a .parquet file or a folder that holds some")
    tables = {file: _open(file) for file in files}
    total = sum(table.metadata.num_rows for table in tables.values())
    if not total:
        raise ValueError(f"{path} holds no rows: a bank needs at least one image")
    items = (item for file, table in tables.items() for item in _items(file, table))
    return load(path, items, total, size, f"columns {', '.join(CAPTION_COLUMNS)}", copies)


def _items(file: Path, table: Any) -> Iterator[Item]:
    """Each row's encoded image and captions."""
    image, captions = _columns(file, table)
    number = 0
    with _readable(file):
        for batch in table.iter_batches(ROWS, columns=[image, *captions]):
            for row in batch.to_pylist():
                data = row.pop(image)
                data = data.get("bytes") if isinstance(data, dict) else data
                own = captions_of(columns(row), f"{file}, row {number}")
                yield Item(f"{file.name}, row {number}", data, own or [""])
                number += 1


def _open(file: Path) -> Any:
    """A file whose columns are as they must be."""
    import pyarrow.parquet as pq

    with _readable(file):
        table = pq.ParquetFile(file)
    _columns(file, table)
    return table


def _columns(file: Path, table: Any) -> tuple[str, list[str]]:
    """Names of the image column and of those with captions."""
    import pyarrow as pa

    schema = table.schema_arrow
    names = {name.lower(): name for name in reversed(schema.names)}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise ValueError(f"{file} has no image column; it has {', '.join(schema.names)}")
    captions = [names[name] for name in CAPTION_COLUMNS if name in names]
    for name in captions:
        kind = schema.field(name).type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
            raise ValueError(f"{file}: column {name} holds {schema.field(name).type}; captions are text or lists of it")
    return image, captions


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no readable Parquet file (truncated?): {str(error).splitlines()[0]}") from None
