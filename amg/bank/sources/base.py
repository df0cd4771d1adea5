"""The interface of sources of training images, and what those of several files share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Row(NamedTuple):
    """One image of a source, as it is read once."""

    key: str
    """Its name for people: a path below the source, a tar's member, a file and row."""
    file: str
    """The file that holds it, from the source's folder; "" where there is none to name."""
    offset: int
    """First byte in that file, or its number there."""
    size: int
    """Bytes; −1 where `offset` is a number."""
    captions: Sequence[str]
    """Each stands for one occurrence in the training set; "" is an occurrence without caption."""
    data: bytes | None
    """The encoded image; None where it cannot be had."""


class Source(Protocol):
    """Streams encoded images with their captions, in an order that never changes; decodes none."""

    captions_in: str
    """Places of the captions, in words."""
    spec: dict[str, Any]
    """JSON that opens the same source again."""
    missed: dict[str, int]
    """Images that the source lists but does not hold, by reason."""

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yields the images from number `start` on."""
        ...

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        """The encoded image again, from where a row says that it lies."""
        ...

    def stamp(self) -> Any:
        """JSON that changes where the source does: names, sizes and times of its files. Opens none."""
        ...


def expanded(path: str | Path) -> list[Path]:
    """The files that braces stand for, `{00000..01023}` or `{a,b}`, in their order; [] where there are none.

    Raises:
        FileNotFoundError: where none of them is there.
    """
    parts = re.split(r"\{([^{}]*)\}", os.path.expanduser(str(path)))
    if len(parts) == 1:
        return []
    choices: list[list[str]] = []
    for i, part in enumerate(parts):
        ends = part.split("..")
        if i % 2 == 0:
            choices.append([part])
        elif len(ends) == 2 and all(end.isdigit() for end in ends):
            choices.append([f"{n:0{len(ends[0])}d}" for n in range(int(ends[0]), int(ends[1]) + 1)])
        else:
            choices.append(part.split(","))
    named = [Path("".join(parts)) for parts in product(*choices)]
    there = [file for file in named if file.is_file()]  # img2dataset leaves gaps
    if not there:
        raise FileNotFoundError(f"data.path: none of the {len(named)} files of {path} is there")
    return there


def listed(path: str | Path, suffix: str) -> tuple[Path, list[Path]]:
    """A folder and its files of a suffix, by name; of one file, its folder and itself.

    Raises:
        FileNotFoundError: where there are none.
    """
    several = expanded(path)
    path = Path(os.path.expanduser(path))
    if several:
        return Path(os.path.commonpath([file.parent for file in several])), several
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"data.path: no {suffix} file at {path}: give a {suffix} file or a folder that holds some"
        )
    return path if path.is_dir() else path.parent, files


def stamps(files: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of files."""
    found = [(file, file.stat()) for file in files]
    return [[str(file), at.st_size, at.st_mtime_ns] for file, at in found]
