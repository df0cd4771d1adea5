"""Published indexes of image sets, as LAION's: vectors in npy files, addresses and captions in Parquet, no images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from amg.bank.sources.base import Row, stamps
from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns

KEYS = ("url", "image_path", "key")


class Embeddings:
    """A folder with `img_emb/*.npy` and `metadata/*.parquet`, row by row, as clip-retrieval writes them.

    Args:
        path: the folder.
        caption: column; None takes the usual ones.
    Raises:
        ValueError: where numbers of files or rows differ.
    """

    missed: dict[str, int] = {}

    def __init__(self, path: str | Path, caption: str | None = None):
        import pyarrow.parquet as pq

        self.root, self.caption = Path(path).expanduser(), caption
        self.arrays, self.tables = (
            sorted((self.root / folder).glob(f"*{suffix}"), key=lambda file: (len(file.name), file.name))
            for folder, suffix in (("img_emb", ".npy"), ("metadata", ".parquet"))
        )
        maps = [np.load(file, mmap_mode="r", allow_pickle=False) for file in self.arrays]
        self.counts = [len(values) for values in maps]
        listed = [pq.read_metadata(file).num_rows for file in self.tables]
        if not maps or self.counts != listed:
            raise ValueError(
                f"data.path: {path}: img_emb has {sum(self.counts)} vectors in {len(maps)} files, metadata "
                f"{sum(listed)} rows in {len(listed)}: they must be of one index"
            )
        self.spec = {"kind": "embeddings", "path": str(path), "caption_column": caption}
        self.captions_in = f"columns {', '.join([caption] if caption else CAPTION_COLUMNS)}"

    def rows(self, start: int = 0) -> Iterator[Row]:
        import pyarrow.parquet as pq

        number = 0
        for file in self.tables:
            for batch in pq.ParquetFile(file).iter_batches():
                number += len(batch)
                for row in batch.slice(max(0, len(batch) - max(0, number - start))).to_pylist():
                    cells = columns(row)
                    key = next((str(cells[name]) for name in KEYS if cells.get(name)), str(number))
                    own = captions_of(cells, f"{file}, {key}", self.caption)
                    yield Row(key, "", 0, -1, own or [""], None)

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        return None

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """The vectors of some rows, (n, D), as they are kept."""
        parts, first = [], 0
        for file, count in zip(self.arrays, self.counts, strict=True):
            lo, hi = max(start - first, 0), min(stop - first, count)
            if lo < hi:
                parts.append(np.load(file, mmap_mode="r", allow_pickle=False)[lo:hi])
            first += count
        return np.concatenate(parts).astype(np.float32)

    def stamp(self) -> Any:
        return stamps([*self.arrays, *self.tables])
