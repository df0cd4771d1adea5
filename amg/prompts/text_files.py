"""Prompts, captions and tables as users have them: UTF-8 text, each line with its number."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CAPTION_COLUMNS = ("captions", "text", "caption", "prompt", "txt")
"""Columns of a caption, in every source of images and in lists of prompts alike; the first that holds one counts."""


def read_text(path: Path) -> str:
    """All of a UTF-8 file, without the mark that some programs begin it with.

    Raises:
        ValueError: for another encoding, with the first line that shows it.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(error.object[: error.start + 1].splitlines())
        raise ValueError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line; blank ones at the end are none.

    Raises:
        ValueError: as `read_text`.
    """
    # str.splitlines would break a line at U+2028 too, which JSON leaves as it is
    for number, line in enumerate(io.StringIO(read_text(path).rstrip(), newline=None), 1):
        yield number, line.removesuffix("\n")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line of JSON that is not blank.

    Raises:
        ValueError: as `read_text`, and for what is no JSON, by its line.
    """
    for number, line in lines(path):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON: {error.msg}") from None


def csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Last line and columns of each row; a comma, semicolon or tab between them, whichever the header has most of.

    Raises:
        ValueError: as `read_text`, and for what is no CSV or has more columns than the header, by its line.
    """
    file = io.StringIO(read_text(path), newline="")
    header = file.readline()
    file.seek(0)
    rows = csv.DictReader(file, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    try:
        for row in rows:
            surplus = row.pop(None, [])  # type: ignore[call-overload]
            if any(surplus):
                raise ValueError(
                    f"{path}, line {rows.line_num}: {len(row) + len(surplus)} columns where the header has {len(row)} "
                    "(quote texts with commas)"
                )
            yield rows.line_num, row
    except csv.Error as error:
        line = rows.reader.line_num
        raise ValueError(f"{path}, line {line}: no CSV (a quote that is not closed?): {error}") from None


def parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Number and columns of each row of a Parquet file.

    Raises:
        ValueError: for what is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from enumerate(pq.read_table(path).to_pylist(), 1)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file (truncated?): {str(error).splitlines()[0]}") from None


def columns(row: object) -> dict[str, Any]:
    """Values of a row by the names of its columns in lower case; none for what is no table's row."""
    return {str(name).strip().lower(): value for name, value in row.items()} if isinstance(row, dict) else {}


def captions_of(row: dict[str, Any], place: str, column: str | None = None) -> list[str] | None:
    """Captions of a row: none for null or blanks, several for a list; None without a column of captions.

    Args:
        row: as `columns` returns it.
        place: file and line, for the error.
        column: of the caption; None looks at CAPTION_COLUMNS.
    Raises:
        ValueError: for a value that is neither text, list of texts nor null.
    """
    named = [name for name in ([column.lower()] if column else CAPTION_COLUMNS) if name in row]
    for name in named:
        values = row[name] if isinstance(row[name], list) else [row[name]]
        for value in values:
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{place}: {name} is {value!r} ({type(value).__name__}), expected text or texts")
        if captions := [value.strip() for value in values if value and value.strip()]:
            return captions
    return [] if named else None
