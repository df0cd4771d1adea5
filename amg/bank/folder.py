"""A folder of pictures with captions beside them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from amg.bank.images import UNREADABLE, decode, stack, tell_skipped
from amg.bank.room import check_room
from amg.prompts.text_files import csv_rows, json_lines, read_text

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FILE_COLUMNS = ("file_name", "file", "image", "path")
CAPTION_COLUMNS = ("text", "caption", "prompt")
TABLES = {"metadata.jsonl": json_lines, "metadata.csv": csv_rows}
FAILED = "failed.jsonl"
"""Addresses that gave no image, beside the `metadata.jsonl` of a download."""


def read_folder(path: str | Path, size: int | None = None) -> tuple[Tensor, list[str] | None]:
    """Reads all pictures of a folder and its sub-folders, in the order of their names.

    A caption is that of a `metadata.jsonl` or `metadata.csv` anywhere in it (`file_name`, from the table's own folder,
    and `text`, or near names; a picture that is named several times is repeated), else that of a `.txt` file of the
    picture's name. Pictures that cannot be read are left out, with one warning that counts and lists them.

    Args:
        path: the folder.
        size: side of the squares to return; None keeps the pictures' own, which must then be equal.
    Returns:
        images (N, 3, size, size) in [−1, 1] and captions ("" where one has none), None where there are none at all.
    Raises:
        FileNotFoundError: for a missing folder, one without pictures, or a picture that the metadata names in vain.
        ValueError: for metadata with a bad line, by number, a picture in two tables, captions that are not UTF-8,
            pictures of several sizes, or more than memory holds.
    """
    path = Path(path)
    files = pictures_in(path)
    named = _metadata(path)
    own = {file: named.get(_place(file)) or [_beside(file)] for file in files}
    total = sum(map(len, own.values()))
    images, captions, broken = [], [], []
    for file in files:
        try:
            picture = decode(file.read_bytes(), size)
        except UNREADABLE as error:
            broken.append(f"{file.relative_to(path)} ({type(error).__name__})")
            continue
        if not images:
            check_room(total, *picture.shape[1:])
        images += [picture] * len(own[file])
        captions += own[file]
    tell_skipped(path, broken, len(files))
    return stack(images, path), captions if any(captions) else None


def pictures_in(path: Path) -> list[Path]:
    """The pictures of a folder and its sub-folders, by name; none is opened.

    Raises:
        FileNotFoundError: for a missing folder, or one without pictures.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {path}")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"data.path: no pictures in {path} (looked for {', '.join(SUFFIXES)})")
    return files


def download_note(path: str | Path, held: int) -> str:
    """States how many images of a list a download's folder holds; "" for a folder without `failed.jsonl`.

    Args:
        held: images that could be read.
    """
    tables = [Path(path) / name for name in ("metadata.jsonl", FAILED)]
    if not all(table.is_file() for table in tables):
        return ""
    listed = {(row.get("url"), row.get("text")) for table in tables for _, row in json_lines(table)}
    return f"{held} of {len(listed)} listed images"


def _beside(file: Path) -> str:
    beside = file.with_suffix(".txt")
    return read_text(beside).strip() if beside.is_file() else ""


def _metadata(folder: Path) -> dict[Path, list[str]]:
    """Captions by the place of a picture, several where its table names it several times."""
    captions: dict[Path, list[str]] = {}
    tables: dict[Path, Path] = {}
    for table in sorted(file for file in folder.rglob("metadata.*") if file.name in TABLES):
        for line, row in TABLES[table.name](table):
            row = row if isinstance(row, dict) else {}
            name, caption = _first(row, FILE_COLUMNS), _first(row, CAPTION_COLUMNS)
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ValueError(f"{table}, line {line}: expected file_name and text, got {', '.join(map(str, row))}")
            file = table.parent / name
            if not file.is_file():
                raise FileNotFoundError(f"{table}, line {line}: there is no picture {file}")
            other = tables.setdefault(_place(file), table)
            if other != table:
                raise ValueError(f"{table}, line {line}: {other} names {file} too: leave it in one of the two")
            captions.setdefault(_place(file), []).append(caption.strip())
    return captions


def _place(file: Path) -> Path:
    """The same for all ways to write a path; a link is a picture of its own, as in a cache of the hub."""
    return file.parent.resolve() / file.name


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) is not None), None)
