"""A folder of images with captions beside them."""

from __future__ import annotations

import os
from pathlib import Path
from unicodedata import normalize

from torch import Tensor

from amg.bank.images import Item, Size, load, suffixes
from amg.prompts.text_files import captions_of, columns, csv_rows, json_lines, read_text

FILE_COLUMNS = ("file_name", "file", "image", "path")
TABLES = {"metadata.jsonl": json_lines, "metadata.csv": csv_rows}
FAILED = "failed.jsonl"
"""Addresses that gave no image, beside the `metadata.jsonl` of a download."""
CAPTIONS_IN = ".txt, metadata.jsonl, metadata.csv"


def read_folder(
    path: str | Path, size: Size = None, captioned: bool = True, copies: float = 1
) -> tuple[Tensor, list[list[str]]]:
    """Reads all images of a folder and its sub-folders, in the order of their names; hidden ones are left out.

    A caption is that of a `metadata.jsonl` or `metadata.csv` anywhere in it (`file_name`, from the table's own folder,
    and one of `amg.prompts.text_files.CAPTION_COLUMNS`; an image that is named several times, or has a list of
    captions, counts as often), else that of a `.txt` file of the image's name. Images that cannot be read are left
    out, with one warning that counts them and those without caption; see `amg.bank.images` for how they are decoded.

    Args:
        path: the folder.
        size: side of the squares to return, or (height, width); None keeps the images' own, which must then be equal.
        captioned: counts images without caption in the warning.
        copies: as `load`'s.
    Returns:
        distinct images (N, 3, H, W) in [−1, 1] and the captions of each, "" for an occurrence without.
    Raises:
        FileNotFoundError: for a missing folder, one without images, or an image that the metadata names in vain.
        ValueError: for metadata with a bad line, by number, an image in two tables, captions that are not UTF-8,
            images of several sizes, or more than memory holds.
    """
    path = Path(path)
    listing = _listing(path)
    named = _metadata([file for file in listing if file.name.lower() in TABLES])
    beside = {file.with_suffix(""): file for file in reversed(listing) if file.suffix.lower() == ".txt"}
    files = {_place(file): file for file in listing if file.suffix.lower() in suffixes()}
    files |= {place: file for place, (file, _) in named.items() if place not in files}
    if not files:
        raise _no_images(path)

    def item(file: Path) -> Item:
        _, captions = named.get(_place(file), (file, []))
        text = beside.get(file.with_suffix(""))
        if not any(captions) and text is not None:
            captions = [read_text(text).strip()] * max(len(captions), 1)
        return Item(os.path.relpath(file, path), file, captions or [""])

    captions_in = CAPTIONS_IN if captioned else None
    return load(path, map(item, sorted(files.values())), len(files), size, captions_in, copies)


def pictures_in(path: Path) -> list[Path]:
    """The images of a folder and its sub-folders, by name; none is opened.

    Raises:
        FileNotFoundError: for a missing folder, or one without images.
    """
    files = [file for file in _listing(path) if file.suffix.lower() in suffixes()]
    if not files:
        raise _no_images(path)
    return files


def download_note(path: str | Path, held: int) -> str:
    """States how many images of a list a download's folder holds; "" for a folder without `failed.jsonl`.

    Args:
        held: images that could be read.
    """
    tables = [Path(os.path.expanduser(path)) / name for name in ("metadata.jsonl", FAILED)]
    if not all(table.is_file() for table in tables):
        return ""
    listed = {(row.get("url"), row.get("text")) for table in tables for _, row in json_lines(table)}
    return f"{held} of {len(listed)} listed images"


def _listing(path: Path) -> list[Path]:
    """All files that are not hidden, nor in a hidden folder, as of notebook checkpoints."""
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {path}")
    files = (file for file in path.rglob("*") if not any(part[0] == "." for part in file.relative_to(path).parts))
    return sorted(file for file in files if file.is_file())


def _no_images(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"data.path: no images in {path} (.png, .jpg and whatever else Pillow opens)")


def _metadata(tables: list[Path]) -> dict[Path, tuple[Path, list[str]]]:
    """Files and their captions by place; several captions where its table names a file several times."""
    named: dict[Path, tuple[Path, list[str]]] = {}
    owners: dict[Path, Path] = {}
    for table in tables:
        for number, row in TABLES[table.name.lower()](table):
            cells, line = columns(row), f"{table}, line {number}"
            name = next((cells[column] for column in FILE_COLUMNS if cells.get(column)), None)
            captions = captions_of(cells, line)
            if not isinstance(name, str) or captions is None:
                raise ValueError(f"{line}: expected file_name and text, got {', '.join(cells) or 'no columns'}")
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
