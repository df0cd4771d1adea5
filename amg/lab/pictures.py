"""The shipped pictures: emoji, some of them planted to be memorized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

EMOJI = Path(__file__).with_name("emoji.parquet")
CAUSES = ("specific prompt", "duplicated caption", "duplicated picture")


@dataclass(frozen=True)
class Pictures:
    """N distinct pictures, images (N, 3, size, size) in [−1, 1]; each other field has N entries."""

    images: Tensor
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    """Captions of each picture's repeats in the training set; one for an ordinary picture."""
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]
    causes: tuple[str, ...]
    """Why a planted picture is memorized (see CAUSES); "" for ordinary ones."""


@cache
def emoji(size: int = 32) -> Pictures:
    """Noto Color Emoji on white (font: OFL 1.1), rendered by `experiments/recipes/render_emoji.py`.

    Args:
        size: 16, 32 or 64; smaller than 64 by averaging.
    """
    import pyarrow.parquet as pq

    from amg.bank.sources.pictures import decode

    if size not in (16, 32, 64):
        raise ValueError(f"emoji come at size 16, 32 or 64, got {size}")
    rows = pq.read_table(EMOJI).to_pylist()
    images = torch.stack([decode(row["image"]["bytes"], None) for row in rows])
    return Pictures(
        images=F.avg_pool2d(images, 64 // size),
        names=tuple(row["caption"] for row in rows),
        captions=tuple(tuple(row["captions"]) for row in rows),
        groups=tuple(row["group"] for row in rows),
        subgroups=tuple(row["subgroup"] for row in rows),
        causes=tuple(row["cause"] for row in rows),
    )
