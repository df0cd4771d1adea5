"""What a source of training images is, and how the right one is found."""

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
    """Where captions are looked for, in words."""
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


KINDS = ("folder", "tars", "parquet", "datasets", "embeddings")


def opened(
    path: str | Path,
    kind: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Source:
    """The source that lies at a path: what is there decides, not its name.

    Args:
        path: a folder of images; tars, a folder of them or `shards/{00000..01023}.tar`; Parquet; what `datasets` saved;
            a `.lance` folder; or a published index of embeddings without images.
        kind: one of KINDS, to expect that one; None looks. For `datasets` the path may be a name on the hub.
        image_column, caption_column: of Parquet and `datasets`, the caption's of any table; None takes the usual names.
        split: of a data set that has several.
        revision: of a data set on the hub.
    Raises:
        FileNotFoundError, ValueError: one line that names what is there and the fix.
    """
    from amg.bank.sources.embeddings import Embeddings
    from amg.bank.sources.folder import Folder
    from amg.bank.sources.parquet import Parquet
    from amg.bank.sources.saved import Saved
    from amg.bank.sources.tars import Tars

    if kind not in (None, *KINDS):
        raise ValueError(f"data.kind: unknown {kind!r}; choose {', '.join(KINDS)} or null")
    files = expanded(path)
    there = files[0] if files else Path(os.path.expanduser(path))
    kind = kind or kind_of(there)
    if kind == "datasets":
        return Saved(str(path), image_column, caption_column, split, revision)
    if kind == "tars":
        return Tars(there if len(files) < 2 else path, caption_column)
    if kind == "parquet":
        return Parquet(there if len(files) < 2 else path, image_column, caption_column)
    if kind == "embeddings":
        return Embeddings(there, caption_column)
    return Folder(there, caption_column)


def kind_of(path: Path) -> str:
    """What lies at a path, one of KINDS.

    Raises:
        FileNotFoundError: where nothing does.
    """
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(265)
        if head[:4] == b"PAR1" or path.suffix == ".parquet":
            return "parquet"
        if head[257:262] == b"ustar" or path.suffix == ".tar":
            return "tars"
        raise ValueError(f"data.path: {path} is neither a tar nor a Parquet file, nor a folder")
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {path} (data.kind=datasets takes a name on the hub)")
    if path.suffix == ".lance" or any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "datasets"
    if (path / "img_emb").is_dir() and (path / "metadata").is_dir():
        return "embeddings"
    suffixes = {Path(entry.name).suffix for entry in os.scandir(path) if not entry.name.startswith(".")}
    if ".tar" in suffixes:
        return "tars"
    from amg.bank.images import suffixes as images

    # a folder may keep its captions in metadata.parquet, and img2dataset's "files" their list
    parquet = [file for file in path.glob("*.parquet") if file.name != "metadata.parquet"]
    folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(path))
    return "parquet" if parquet and not folders and not suffixes & images() else "folder"


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
