"""Images as they are: at a whole multiple of their size, never blurred, beside their nearest training image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from experiments.report.style import GUIDED, INK, ORDINARY, UNGUIDED, style
from experiments.run import records

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

DPI = 200
SIDE = 192
"""Pixels that an image is shown at, about."""


def picture(run_dir: str | Path, seed: int) -> np.ndarray:
    """A run's image of a seed, (H, W, 3) uint8."""
    return np.asarray(Image.open(records.picture_path(run_dir, seed)).convert("RGB"))


def training_picture(images: Sequence[Tensor] | Tensor, index: int) -> np.ndarray:
    """Image of a bank, of which `images[index]` is (3, H, W) in [−1, 1], as (H, W, 3) uint8."""
    pixels = images[index].detach().cpu().float().clamp(-1, 1).permute(1, 2, 0).numpy()
    return ((pixels + 1) * 127.5).round().astype(np.uint8)


def enlarge(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Repeats pixels a whole number of times, up to `side`; larger images are averaged down by a whole number."""
    longest = max(pixels.shape[:2])
    if longest <= side:
        times = side // longest
        return pixels.repeat(times, 0).repeat(times, 1)
    return np.asarray(Image.fromarray(pixels).reduce(-(-longest // side)))


def choose(unguided: pd.DataFrame, guided: pd.DataFrame, n: int) -> list[int]:
    """Seeds that both runs have: those that the truth calls copies first, then by similarity; each image copied once.

    Without AMG a prompt gives the same copy again and again: a second one shows nothing new, so they come last.
    """
    both = unguided[unguided["seed"].isin(guided["seed"])].copy()
    both["copied"] = both["truth"].fillna(False).astype(bool)
    both = both.sort_values(["copied", "similarity", "seed"], ascending=[False, False, True])
    both["again"] = both.duplicated("nearest_index")
    return both.sort_values("again", kind="stable")["seed"].head(n).tolist()


def figure4(
    run_none: str | Path,
    run_guided: str | Path,
    bank_images: Tensor,
    out: str | Path,
    *,
    n: int = 8,
    distance: bool = False,
    seeds: Sequence[int] | None = None,
) -> Path:
    """The same seeds without and with AMG, each above its nearest training image (Figure 4).

    Args:
        run_none, run_guided: folders of the two runs.
        bank_images: `bank_images[i]` is (3, H, W) in [−1, 1], what `nearest_index` counts in.
        n: columns.
        distance: whether similarities are negated nL2, printed as distances.
        seeds: columns to show; None takes the unguided copies first.
    """
    none, guided = (records.read(run).set_index("seed") for run in (run_none, run_guided))
    seeds = list(seeds) if seeds is not None else choose(none.reset_index(), guided.reset_index(), n)
    if not seeds:
        raise ValueError(f"{run_none} and {run_guided} have no seed in common: run both with the same seed=")
    sign, word = (-1, "nL2") if distance else (1, "σ")
    grid, captions = [], []
    for run_dir, rows in ((run_none, none), (run_guided, guided)):
        some = rows.loc[seeds]
        grid.append([enlarge(picture(run_dir, seed)) for seed in seeds])
        captions.append([f"{word} {sign * value:.2f}".replace("-", "−") for value in some["similarity"]])
        grid.append([enlarge(training_picture(bank_images, index)) for index in some["nearest_index"]])
        captions.append([""] * len(seeds))
    labels = ("without", "its nearest\ntraining image", "with AMG", "its nearest\ntraining image")
    heads = [str(row["prompt"]) if isinstance(row["prompt"], str) else f"seed {seed}" for seed, row in
             zip(seeds, none.loc[seeds].to_dict("records"), strict=True)]  # fmt: skip
    return _place(grid, captions, labels, heads, Path(out))


def _place(grid: list[list[np.ndarray]], captions: list[list[str]], labels: Sequence[str], heads: list[str], out: Path):
    """Puts images pixel on pixel; matplotlib would resample them in axes."""
    side = max(max(p.shape[:2]) for row in grid for p in row)
    gap, left, caption, pair = 14, 210, 34, 26
    wrapped = [textwrap.wrap(head, 15)[:3] for head in heads]
    top = 16 + 28 * max(len(lines) for lines in wrapped)
    width = left + len(heads) * (side + gap)
    tops, y = [], top
    for i in range(len(grid)):
        tops.append(y)
        y += side + (caption if any(captions[i]) else gap + (pair if i + 1 < len(grid) else 0))
    height = y
    with style() as plt:
        figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI)

        def write(x: float, from_top: float, text: str, **options: Any) -> None:
            figure.text(x / width, 1 - from_top / height, text, **options)

        for column, lines in enumerate(wrapped):
            x = left + column * (side + gap) + side / 2
            write(x, top - 10, "\n".join(lines), ha="center", va="bottom", fontsize=7.5, linespacing=1.15)
        for row, (pictures, names) in enumerate(zip(grid, captions, strict=True)):
            color = (UNGUIDED, ORDINARY, GUIDED, ORDINARY)[row % 4]
            bold = "bold" if row % 2 == 0 else "normal"
            write(left - 18, tops[row] + side / 2, labels[row], ha="right", va="center", fontsize=8, color=color,
                  weight=bold, linespacing=1.3)  # fmt: skip
            for column, (pixels, name) in enumerate(zip(pictures, names, strict=True)):
                x = left + column * (side + gap) + (side - pixels.shape[1]) // 2
                figure.figimage(pixels, x, height - tops[row] - pixels.shape[0])
                write(left + column * (side + gap) + side / 2, tops[row] + side + 5, name, ha="center", va="top",
                      fontsize=7, color=INK)  # fmt: skip
        figure.savefig(out, dpi=DPI)
    return out


def contact_sheet(run_dir: str | Path, out: str | Path, *, n: int = 96, columns: int = 16, side: int = 64) -> Path:
    """A run's first n images by seed; those that the truth calls copies have a frame."""
    rows = records.read(run_dir).head(n)
    if not len(rows):
        raise ValueError(f"{run_dir} holds no records: generate samples first")
    pictures = [enlarge(picture(run_dir, seed), side) for seed in rows["seed"]]
    side, gap = max(max(p.shape[:2]) for p in pictures), 8
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    sheet = np.full((lines * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    frame = np.array([int(UNGUIDED[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    for i, (pixels, copied) in enumerate(zip(pictures, rows["truth"].fillna(False), strict=True)):
        y, x = gap + (i // columns) * (side + gap), gap + (i % columns) * (side + gap)
        if copied:
            sheet[y - 3 : y + pixels.shape[0] + 3, x - 3 : x + pixels.shape[1] + 3] = frame
        sheet[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    Image.fromarray(sheet).save(out)
    return Path(out)
