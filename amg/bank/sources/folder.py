"""A folder of pictures with captions beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from torch import Tensor

from amg.bank.room import check_room
from amg.bank.sources.pictures import UNREADABLE, decode, stack, tell_skipped

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FILE_COLUMNS = ("file_name", "file", "image", "path")
CAPTION_COLUMNS = ("text", "caption", "prompt")


def read_folder(path: str | Path, size: int | None = None) -> tuple[Tensor, list[str] | None]:
    """Reads all pictures of a folder and its sub-folders, in the order of their names.

    A caption is that of `metadata.jsonl` or `metadata.csv` at the top (`file_name` and `text`, or near names; a picture
    that is named several times is repeated), else that of a `.txt` file of the picture's name. Pictures that cannot be
    read are left out, with one warning that counts and lists them.

    Args:
        path: the folder.
        size: side of the squares to return; None keeps the pictures' own, which must then be equal.
    Returns:
        images (N, 3, size, size) in [−1, 1] and captions ("" where one has none), None where there are none at all.
    Raises:
        FileNotFoundError: for a missing folder, one without pictures, or a picture that the metadata names in vain.
        ValueError: for metadata with a bad line, by number, pictures of several sizes, or more than memory holds.
    """
    path = Path(path)
    files = pictures_in(path)
    named = _metadata(path)
    total = sum(len(named.get(file.resolve(), "1")) for file in files)
    images, captions, broken = [], [], []
    for file in files:
        try:
            picture = decode(file.read_bytes(), size)
        except UNREADABLE as error:
            broken.append(f"{file.relative_to(path)} ({type(error).__name__})")
            continue
        if not images:
            check_room(total, *picture.shape[1:])
        own = named.get(file.resolve()) or [_beside(file)]
        images += [picture] * len(own)
        captions += own
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


def _beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else ""


def _metadata(folder: Path) -> dict[Path, list[str]]:
    """Captions by picture, several where it is named several times."""
    captions: dict[Path, list[str]] = {}
    for table, rows in ((folder / "metadata.jsonl", _json_rows), (folder / "metadata.csv", _csv_rows)):
        if not table.is_file():
            continue
        for line, row in rows(table):
            name, caption = _first(row, FILE_COLUMNS), _first(row, CAPTION_COLUMNS)
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ValueError(f"{table}, line {line}: expected file_name and text, got {', '.join(map(str, row))}")
            file = folder / name
            if not file.is_file():
                raise FileNotFoundError(f"{table}, line {line}: there is no picture {name}")
            captions.setdefault(file.resolve(), []).append(caption.strip())
    return captions


def _json_rows(table: Path):
    for line, text in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{table}, line {line}: no JSON: {error.msg}") from None
            yield line, row if isinstance(row, dict) else {}


def _csv_rows(table: Path):
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) is not None), None)
