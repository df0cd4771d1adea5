"""A folder of images with captions beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from amg.bank.images import suffixes
from amg.bank.sources.base import Row
from amg.prompts.text_files import captions_of, columns, csv_rows, json_lines, parquet_rows, read_text

FILE_COLUMNS = ("file_name", "file", "image", "path")
TABLES = {"metadata.jsonl": json_lines, "metadata.csv": csv_rows, "metadata.parquet": parquet_rows}
CHANGED = "build the bank in another folder"
FAILED = "failed.jsonl"
"""Addresses that gave no image, beside the `metadata.jsonl` of a download."""


class Folder:
    """All images of a folder and its sub-folders, in the order of their names; hidden ones are left out.

    A caption is that of a `metadata.jsonl`, `.csv` or `.parquet` anywhere in it (`file_name` or `*_file_name`, from the
    table's own folder, and a caption column; an image that is named several times, or has a list of captions, counts
    as often), else that of a `.txt` file of the image's name.

    Args:
        path: the folder.
        caption: column of the tables; None takes the usual ones.
    Raises:
        FileNotFoundError: for a missing folder, one without images, or an image that the metadata names in vain.
        ValueError: for metadata with a bad line, by number, an image in two tables, captions that are not UTF-8.
    """

    def __init__(self, path: str | Path, caption: str | None = None):
        self.root, self.caption = Path(os.path.expanduser(path)), caption
        if not self.root.is_dir():
            raise FileNotFoundError(f"data.path: there is no folder {path}")
        self.spec = {"kind": "folder", "path": str(path), "caption_column": caption}
        self.captions_in = f".txt, {', '.join(TABLES)}"
        self.missed: dict[str, int] = {}

    def rows(self, start: int = 0, known: dict[str, int] | None = None) -> Iterator[Row]:
        """Each image from number `start` on.

        Args:
            known: names that are left out, each with its size; all of them must be there.
        Raises:
            ValueError: where a known one is not there, or of another size.
        """
        known = dict(known or {})
        texts: dict[str, dict[str, str]] = {}
        for name, listed in islice(self._files(texts), start, None):
            if (size := known.pop(name, None)) is not None:
                if (now := (self.root / name).stat().st_size) != size:
                    raise ValueError(f"data.path: {self.root / name} has {now} bytes, {size} before: {CHANGED}")
                continue
            try:
                data = (self.root / name).read_bytes()
            except OSError:
                data = None
            captions = listed or []
            folder, _, own = name.rpartition("/")
            text = texts.get(folder, {}).get(own.rpartition(".")[0] or own)
            if not any(captions) and text is not None:
                captions = [read_text(self.root / folder / text).strip()] * max(len(captions), 1)
            yield Row(name, name, 0, len(data or b""), captions or [""], data)
        if known:
            some = next(iter(known))
            raise ValueError(f"data.path: {len(known)} images of {self.root} are gone, e.g. {some}: {CHANGED}")

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        return (self.root / file).read_bytes()

    def stamp(self) -> Any:
        found = []
        for folder, name in _walk(self.root):
            at = os.stat(self.root / folder / name)
            found.append([f"{folder}/{name}", at.st_size, at.st_mtime_ns])
        return found

    def _files(self, texts: dict[str, dict[str, str]]) -> Iterator[tuple[str, list[str] | None]]:
        """Each image, from the folder, and the captions that tables give it; fills in the texts of each folder."""
        named = _metadata(self.root, self.caption)
        away: list[tuple[str, list[str]]] = []  # images that the walk does not meet as such
        for place, (file, captions) in list(named.items()):
            name = os.path.relpath(file, self.root)
            hidden = any(part[0] == "." for part in Path(name).parts)
            if hidden or file.suffix.lower() not in suffixes():
                away.append((Path(name).as_posix(), captions))
                del named[place]
        away.sort(key=lambda one: one[0].split("/"))
        places: dict[str, Path] = {}
        met = False
        for folder, name in _walk(self.root):
            if os.path.splitext(name)[1].lower() not in suffixes():
                continue
            path = f"{folder}/{name}" if folder else name
            while away and away[0][0].split("/") < path.split("/"):
                met = True
                yield self._with_texts(away.pop(0), texts)
            if named and folder not in places:
                places[folder] = (self.root / folder).resolve()
            listed = named.get(places[folder] / name) if named else None
            met = True
            yield self._with_texts((path, listed and listed[1]), texts)
        for one in away:
            met = True
            yield self._with_texts(one, texts)
        if not met:
            raise FileNotFoundError(f"data.path: no images in {self.root} (.png, .jpg and whatever else Pillow opens)")

    def _with_texts(self, one: tuple[str, list[str] | None], texts: dict[str, dict[str, str]]):
        """Lists the `.txt` files of the image's folder, of that folder alone."""
        folder = one[0].rpartition("/")[0]
        if folder not in texts:
            texts.clear()
            names = sorted(os.listdir(self.root / folder), reverse=True)
            texts[folder] = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
        return one


def pictures_in(path: Path) -> list[Path]:
    """The images of a folder and its sub-folders, by name; none is opened.

    Raises:
        FileNotFoundError: for a missing folder, or one without images.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {path}")
    files = [path / folder / name for folder, name in _walk(path) if os.path.splitext(name)[1].lower() in suffixes()]
    if not files:
        raise FileNotFoundError(f"data.path: no images in {path} (.png, .jpg and whatever else Pillow opens)")
    return files


def download_note(path: str | Path, held: Callable[[], int]) -> str:
    """States how many images of a list a download's folder holds; "" for a folder without `failed.jsonl`.

    Args:
        held: counts the images that could be read.
    """
    tables = [Path(os.path.expanduser(path)) / name for name in ("metadata.jsonl", FAILED)]
    if not all(table.is_file() for table in tables):
        return ""
    listed = {(row.get("url"), row.get("text")) for table in tables for _, row in json_lines(table)}
    return f"{held()} of {len(listed)} listed images"


def _walk(root: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """Folder and name of all files that are not hidden, nor in a hidden folder, as of notebook checkpoints."""
    with os.scandir(root / below) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, folder in found:
        if folder:
            yield from _walk(root, f"{below}/{name}" if below else name)
        elif os.path.isfile(root / below / name):
            yield below, name


def _metadata(root: Path, caption: str | None) -> dict[Path, tuple[Path, list[str]]]:
    """Files and their captions by place; several captions where its table names a file several times."""
    named: dict[Path, tuple[Path, list[str]]] = {}
    owners: dict[Path, Path] = {}
    tables = [root / folder / name for folder, name in _walk(root) if name.lower() in TABLES]
    for table in tables:
        for number, row in TABLES[table.name.lower()](table):
            cells, line = columns(row), f"{table}, line {number}"
            names = [*FILE_COLUMNS, *(column for column in cells if column.endswith("_file_name"))]
            name = next((cells[column] for column in names if cells.get(column)), None)
            captions = captions_of(cells, line, caption)
            if not isinstance(name, str) or captions is None:
                wanted = f"file_name and {caption or 'text'}"
                raise ValueError(f"{line}: expected {wanted}, got {', '.join(cells) or 'no columns'}")
            file = _file(table.parent, name.strip())
            if file is None:
                raise FileNotFoundError(f"{line}: there is no image {table.parent / name.strip()}")
            place = _place(file)
            other = owners.setdefault(place, table)
            if other != table:
                raise ValueError(f"{line}: {other} names {file} too: leave it in one of the two")
            named.setdefault(place, (file, []))[1].extend(captions or [""])
    return named


def _file(folder: Path, name: str) -> Path | None:
    """The file of that name, also where a table of Windows writes `\\`, or one of a Mac ü as u and ¨."""
    ways = [name, name.replace("\\", "/")]
    ways += [normalize(form, way) for form in ("NFC", "NFD") for way in ways]
    return next((file for way in ways if (file := folder / way).is_file()), None)


def _place(file: Path) -> Path:
    """The same for all ways to write a path; a link is an image of its own, as in a cache of the hub."""
    return file.parent.resolve() / file.name
