"""Samples in a report: the table of all, and the pairs that are most like the training set."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from experiments.report.pictures import picture, training_picture
from experiments.run import records

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class SampleColumn:
    key: str
    label: str
    number: bool = True
    digits: int = 0


@dataclass(frozen=True)
class Cell:
    shown: str
    order: str | None
    """Value by which the column is sorted; None for the text itself."""
    text: bool
    link: str | None = None


COLUMNS = (
    SampleColumn("run", "run", number=False),
    SampleColumn("seed", "seed"),
    SampleColumn("prompt", "prompt", number=False),
    SampleColumn("cause", "cause", number=False),
    SampleColumn("similarity", "similarity", digits=3),
    SampleColumn("judge", "judge", digits=3),
    SampleColumn("truth", "copy", number=False),
    SampleColumn("aligned", "aligned", number=False),
    SampleColumn("steps_guided", "steps guided"),
    SampleColumn("nearest_caption", "nearest", number=False),
)


@dataclass(frozen=True)
class SampleTable:
    columns: list[SampleColumn]
    rows: list[list[Cell]]
    cut: str
    """Tells how many samples of each run are shown; "" if all are."""


def sample_table(
    runs: Mapping[str, Path], frames: Mapping[str, pd.DataFrame], page_dir: Path, limit: int
) -> SampleTable:
    """The samples of all runs; beyond `limit` rows the first seeds of each run, so that no run is left out."""
    lengths = {name: len(frame) for name, frame in frames.items()}
    each = share(list(lengths.values()), limit)
    rows = [
        sample_row(name, row, runs[name], page_dir)
        for name, frame in frames.items()
        for row in frame.head(each).to_dict("records")
    ]
    return SampleTable(*filled(rows), cut=_cut(lengths, each))


def share(lengths: Sequence[int], limit: int) -> int:
    """Returns the number of rows of a run so that all have at most `limit`; shorter runs leave theirs to longer."""
    left = limit
    for i, length in enumerate(sorted(lengths)):
        each = left // (len(lengths) - i)
        if length > each:
            return each
        left -= length
    return max(lengths, default=0)


def _cut(lengths: Mapping[str, int], each: int) -> str:
    if all(length <= each for length in lengths.values()):
        return ""
    if len(set(lengths.values())) == 1:
        return f"{each} of {next(iter(lengths.values()))} of each run"
    return ", ".join(f"{name} {min(each, length)} of {length}" for name, length in lengths.items())


def sample_row(run: str, row: Mapping[str, Any], run_dir: Path, page_dir: Path) -> list[Cell]:
    """The cells of one sample; its seed links to its image, relative to the page."""
    return [_cell(column, {**row, "run": run}, run_dir, page_dir) for column in COLUMNS]


def filled(rows: list[list[Cell]]) -> tuple[list[SampleColumn], list[list[Cell]]]:
    """Without the columns that tell nothing: empty ones, and the run where there is only one."""
    keep = [
        i
        for i, column in enumerate(COLUMNS)
        if any(row[i].shown for row in rows) and (column.key != "run" or len({row[i].shown for row in rows}) > 1)
    ]
    return [COLUMNS[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _cell(column: SampleColumn, row: Mapping[str, Any], run_dir: Path, page_dir: Path) -> Cell:
    value = row[column.key]
    if column.key == "prompt" and not known(value) and known(row["label"]):
        value = f"class {row['label']}"
    if not known(value):
        return Cell("", "", text=not column.number)
    if not column.number:
        words = {True: "yes", False: "no"}
        return Cell(words[bool(value)] if column.key in ("truth", "aligned") else str(value), None, text=True)
    link = None
    if column.key == "seed":
        link = quote(Path(os.path.relpath(records.picture_path(run_dir, value), page_dir)).as_posix())
    shown = f"{value:.{column.digits}f}".replace("-", "−")
    shown = shown.lstrip("−") if not shown.strip("−0.") else shown
    return Cell(shown, repr(value) if isinstance(value, int) else repr(float(value)), text=False, link=link)


def known(value: Any) -> bool:
    """Whether a cell of a frame holds something; pandas has three words for nothing."""
    import pandas as pd

    return value is not None and value is not pd.NA and not (isinstance(value, float) and math.isnan(value))


PAIRS = 12


def nearest_pairs(
    runs: Mapping[str, Path],
    frames: Mapping[str, pd.DataFrame],
    manifests: Mapping[str, Mapping[str, Any]],
    bank_images: Tensor,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(run, its samples most like the training set), each nearest image once per run; plain values, for JSON.

    Args:
        runs, frames, manifests: folder, records and manifest by the name of the row.
        bank_images: `bank_images[i]` is (3, H, W) in [−1, 1], what `nearest_index` counts in.
    """
    out = []
    for name, frame in frames.items():
        top = frame.sort_values(["similarity", "seed"], ascending=[False, True]).drop_duplicates("nearest_index")
        some = [
            _pair(runs[name], row, bank_images, manifests[name].get("similarity") == "nl2")
            for row in top.head(PAIRS).to_dict("records")
            if records.picture_path(runs[name], row["seed"]).is_file()
        ]
        out.append((name, some))
    return [(name, some) for name, some in out if some]


def _pair(run_dir: Path, row: Mapping[str, Any], bank_images: Tensor, distance: bool) -> dict[str, Any]:
    sample = picture(run_dir, row["seed"])
    longest = max(sample.shape[:2])
    return {
        "sample": inline(sample),
        "nearest": inline(training_picture(bank_images, row["nearest_index"])),
        "side": longest * max(1, 96 // longest) if longest <= 96 else 96,
        "seed": row["seed"],
        "similarity": f"nL2 {-row['similarity']:.2f}" if distance else f"similarity {row['similarity']:.2f}",
        "copied": known(row["truth"]) and bool(row["truth"]),
        "prompt": row["prompt"] if known(row["prompt"]) else None,
        "caption": row["nearest_caption"],
    }


def inline(pixels: Any) -> str:
    """(H, W, 3) uint8 as a data URL: the very pixels as a PNG; beyond 192 of them averaged down, as a JPEG."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= 192:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.reduce(math.ceil(max(image.size) / 192)).save(buffer, "JPEG", quality=90)
    kind = "png" if max(image.size) <= 192 else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
