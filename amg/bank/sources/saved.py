"""Data sets that the library `datasets` reads: Arrow folders that it saved, Lance, and names on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from amg.bank.sources.base import Row, stamps
from amg.bank.sources.parquet import IMAGE_COLUMNS, _bytes, _named
from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns


class Saved:
    """A data set of `datasets`, in its own order.

    Args:
        path: a folder that `save_to_disk` wrote, a `.lance` folder (needs pylance), or a name on the hub.
        image, caption: columns; None takes the usual ones. Class labels are captioned by their names.
        split: needed where there are several; "train" where one is called so.
        revision: of the hub.
    Raises:
        ImportError, FileNotFoundError, ValueError: one line.
    """

    missed: dict[str, int] = {}

    def __init__(
        self,
        path: str,
        image: str | None = None,
        caption: str | None = None,
        split: str | None = None,
        revision: str | None = None,
    ):
        self.path = os.path.expanduser(path)
        self.data = _loaded(require(), self.path, split, revision)
        names = {name.lower(): name for name in reversed(self.data.column_names)}
        have = f"{path}, which has {', '.join(self.data.column_names)}"
        for key, name in (("image_column", image), ("caption_column", caption)):
            if name is not None and name.lower() not in names:
                raise ValueError(f"data.{key}: no column {name} in {have}")
        self.image = next((names[n] for n in ([image.lower()] if image else IMAGE_COLUMNS) if n in names), None)
        if self.image is None:
            raise ValueError(f"data.path: no image column in {have}: data.image_column names another")
        self.captions = [names[n] for n in ([caption.lower()] if caption else CAPTION_COLUMNS) if n in names]
        features = self.data.features
        self.names = getattr(features[self.captions[0]], "names", None) if self.captions else None
        if type(features[self.image]).__name__ == "Image":  # decoding is ours: one corrupt image would end all
            self.data = self.data.cast_column(self.image, require().Image(decode=False))
        self.images, self.caption = self.data.select_columns([self.image]), caption
        self.captions_in = f"columns {', '.join([caption] if caption else CAPTION_COLUMNS)}"
        self.spec = {"kind": "datasets", "path": path, "image_column": image, "caption_column": caption}
        self.spec |= {"split": split, "revision": revision}

    def rows(self, start: int = 0) -> Iterator[Row]:
        wanted = self.data.select_columns([self.image, *self.captions])
        for number in range(start, len(wanted)):
            row, place = wanted[number], f"{self.path}, row {number}"
            data = _bytes(row.pop(self.image), Path(self.path))
            own = captions_of({k: _named(v, self.names, place) for k, v in columns(row).items()}, place, self.caption)
            yield Row(f"row {number}", "", number, -1, own or [""], data)

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        return _bytes(self.images[offset][self.image], Path(self.path))

    def stamp(self) -> Any:
        files = [Path(file["filename"]) for file in self.data.cache_files]
        return [len(self.data), *stamps(files)]


def _loaded(datasets: ModuleType, path: str, split: str | None, revision: str | None) -> Any:
    folder = Path(path)
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(path)
            if isinstance(found, dict) and split:
                found = found[split]
        elif folder.suffix == ".lance":
            found = datasets.load_dataset("lance", data_files={"train": f"{path}/**"}, split=split or "train")
        else:
            found = datasets.load_dataset(path, split=split, revision=revision)
    except Exception as error:  # of many libraries
        name = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise FileNotFoundError(f"data.path: `datasets` cannot load {path}, split {split}: {name}") from None
    if isinstance(found, dict):
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
        if split is None:
            raise ValueError(f"data.split: {path} has {', '.join(found)}: name one")
        found = found[split]
    return found


def require() -> ModuleType:
    """The library `datasets`.

    Raises:
        ImportError: where it is not installed; one line that says the fix.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("data.path: this is read by `datasets`: pip install datasets") from None
    return datasets
