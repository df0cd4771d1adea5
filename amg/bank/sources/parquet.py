"""Parquet files in the layout of image data sets on the hub: an image column of {bytes, path} structs, or of bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amg.bank.sources.base import Row, listed, stamps
from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "picture")
ROWS = 32
"""Rows read at once, so that encoded images do not fill memory."""


class Parquet:
    """Parquet files in the order of their names. A row with a list of captions stands for as many occurrences.

    Args:
        path: a `.parquet` file, a folder of them, or `train-{00000..00007}.parquet`.
        image, caption: columns; None takes the usual ones. A caption column of class labels is their names, where the
            file has them as the hub's files do, or `names`.
        split: reads the files alone whose names begin with it, as the hub's do: `train-00000-of-00001.parquet`.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the columns that it has.
    """

    def __init__(
        self,
        path: str | Path,
        image: str | None = None,
        caption: str | None = None,
        names: Sequence[str] | None = None,
        split: str | None = None,
    ):
        self.root, files = listed(path, ".parquet")
        self.files = [file for file in files if file.name.startswith(split or "")]
        if not self.files:
            there = ", ".join(file.name for file in files)
            raise ValueError(f"data.split: no file of {path} begins with {split}; there is {there}")
        self.image, self.caption, self.names = image, caption, names
        self.spec = {"kind": "parquet", "path": str(path), "image_column": image, "caption_column": caption}
        if split:
            self.spec["split"] = split
        self.captions_in = f"columns {', '.join([caption] if caption else CAPTION_COLUMNS)}"
        self.missed: dict[str, int] = {}
        self._opened = {file: self._columns(file, _open(file)) for file in self.files}
        if not sum(_open(file).metadata.num_rows for file in self.files):
            raise ValueError(f"{path} holds no rows: a bank needs at least one image")
        self._place: tuple[str, int, Any] | None = None

    def rows(self, start: int = 0) -> Iterator[Row]:
        for file in self.files:
            table = _open(file)
            if start >= table.metadata.num_rows:
                start -= table.metadata.num_rows
                continue
            image, captions, names = self._opened[file]
            name = os.path.relpath(file, self.root)
            for number, row in self._from(file, start, [image, *captions]):
                data = _bytes(row.pop(image), file.parent)
                row = {key: _named(value, names, f"{file}, row {number}") for key, value in row.items()}
                own = captions_of(columns(row), f"{file}, row {number}", self.caption)
                yield Row(f"{name}, row {number}", name, number, -1, own or [""], data)
            start = 0

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        image, _, _ = self._opened[self.root / file]
        near = self._place is not None and self._place[0] == file and 0 <= offset - self._place[1] < 16 * ROWS
        if not near:
            self._place = file, offset, self._from(self.root / file, offset, [image])
        rows = self._place[2]  # the next rows are mostly asked for next
        number, row = next((number, row) for number, row in rows if number == offset)
        self._place = file, number + 1, rows
        return _bytes(row[image], self.root)

    def stamp(self) -> Any:
        return stamps(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_place": None}  # an open file is of its process

    def _from(self, file: Path, start: int, names: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and columns of each row from `start` on; row groups before it are not read."""
        table, number = _open(file), 0
        with _readable(file):
            for group in range(table.metadata.num_row_groups):
                there = table.metadata.row_group(group).num_rows
                if number + there <= start:
                    number += there
                    continue
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=names):
                    if number + len(batch) > start:
                        skip = max(start - number, 0)
                        yield from enumerate(batch.slice(skip).to_pylist(), number + skip)
                    number += len(batch)

    def _columns(self, file: Path, table: Any) -> tuple[str, list[str], Sequence[str] | None]:
        """Names of the image column and of those with captions, and of the classes where the caption is a label."""
        import pyarrow as pa

        schema = table.schema_arrow
        have = f"{file}, which has {', '.join(schema.names)}"
        names = {name.lower(): name for name in reversed(schema.names)}
        for key, name in (("image_column", self.image), ("caption_column", self.caption)):
            if name is not None and name.lower() not in names:
                raise ValueError(f"data.{key}: no column {name} in {have}")
        wanted = [self.image.lower()] if self.image else IMAGE_COLUMNS
        image = next((names[name] for name in wanted if name in names), None)
        if image is None:
            lists = {"url", "status"} <= names.keys()
            fix = (
                "it is img2dataset's list; name its tars, or the folder that holds them (data.kind=null)"
                if lists
                else "data.image_column names another"
            )
            raise ValueError(f"data.path: no image column in {have}: {fix}")
        captions = [
            names[name] for name in ([self.caption.lower()] if self.caption else CAPTION_COLUMNS) if name in names
        ]
        classes = self.names or _classes(schema, self.caption)
        for name in captions if classes is None else []:
            kind = schema.field(name).type
            while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
                raise ValueError(
                    f"{file}: column {name} holds {schema.field(name).type}; captions are text or lists of it"
                )
        return image, captions, classes


def _classes(schema: Any, column: str | None) -> list[str] | None:
    """Names of a column's classes, as `datasets` writes them into a file."""
    if column is None or b"huggingface" not in (schema.metadata or {}):
        return None
    feature = json.loads(schema.metadata[b"huggingface"]).get("info", {}).get("features", {}).get(column, {})
    return feature.get("names") if isinstance(feature, dict) else None


def _named(value: Any, names: Sequence[str] | None, place: str) -> Any:
    """The name of a class for its number."""
    if names is None or value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or value not in range(len(names)):  # True is 1 to Python, but no class
        raise ValueError(f"{place}: label {value!r} is not one of 0 … {len(names) - 1}")
    return names[int(value)]


def _bytes(cell: Any, folder: Path) -> bytes | None:
    """The encoded image of a cell, {bytes, path} or bytes."""
    if not isinstance(cell, dict):
        return cell if isinstance(cell, bytes) else None
    if cell.get("bytes") is None and cell.get("path") and (folder / cell["path"]).is_file():
        return (folder / cell["path"]).read_bytes()
    return cell.get("bytes")


def _open(file: Path) -> Any:
    import pyarrow.parquet as pq

    with _readable(file):
        return pq.ParquetFile(file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no readable Parquet file (truncated?): {str(error).splitlines()[0]}") from None
