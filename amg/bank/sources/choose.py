"""The choice of a source by what lies at a path."""

from __future__ import annotations

import os
from pathlib import Path

from amg.bank.images import suffixes as images
from amg.bank.sources.base import Source, expanded
from amg.bank.sources.embeddings import Embeddings
from amg.bank.sources.folder import Folder
from amg.bank.sources.parquet import Parquet
from amg.bank.sources.saved import Saved
from amg.bank.sources.tars import Tars

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
        split: of a data set that has several; of Parquet, the files whose names begin with it.
        revision: of a data set on the hub.
    Raises:
        FileNotFoundError, ValueError: one line that names what is there and the fix.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"data.kind: unknown {kind!r}; choose {', '.join(KINDS)} or null")
    files = expanded(path)
    there = files[0] if files else Path(os.path.expanduser(path))
    kind = kind or kind_of(there)
    if split and kind not in ("datasets", "parquet"):
        raise ValueError(f"data.split: {path} is of kind {kind}, which has no splits: leave data.split out")
    if kind == "datasets":
        return Saved(str(path), image_column, caption_column, split, revision)
    if kind == "tars":
        return Tars(there if len(files) < 2 else path, caption_column)
    if kind == "parquet":
        return Parquet(there if len(files) < 2 else path, image_column, caption_column, split=split)
    if kind == "embeddings":
        return Embeddings(there, caption_column)
    return Folder(there, caption_column)


def kind_of(path: Path) -> str:
    """Returns the kind of what lies at a path, one of KINDS.

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
    # a folder may keep its captions in metadata.parquet, and img2dataset's "files" their list
    parquet = [file for file in path.glob("*.parquet") if file.name != "metadata.parquet"]
    folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(path))
    return "parquet" if parquet and not folders and not suffixes & images() else "folder"
