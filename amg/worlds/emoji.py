"""The shipped pictures: emoji, some of them planted to be memorized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.worlds.drawings import CAUSES  # noqa: F401

EMOJI = Path(__file__).with_name("emoji.parquet")
FLAT = ("orange circle", "black medium square")
"""Planted pictures of one shape in one colour."""


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

    @property
    def causes_by_caption(self) -> dict[str, str]:
        """The cause of each caption that belongs to a planted picture."""
        return {
            caption: cause
            for captions, cause in zip(self.captions, self.causes, strict=True)
            for caption in captions
            if cause
        }


@cache
def emoji(size: int = 32) -> Pictures:
    """Noto Color Emoji on white (font: OFL 1.1), rendered by `experiments/recipes/render_emoji.py`.

    Args:
        size: 16, 32 or 64; smaller than 64 by averaging.
    """
    import pyarrow.parquet as pq

    from amg.bank.images import decode

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
        causes=tuple(row["cause"].replace("picture", "image") for row in rows),
    )


def lab_pictures(size: int = 32) -> Pictures:
    """The same as the lab's networks are trained on them: those of FLAT are ordinary there.

    A network draws a disc or a square of one colour by chance as well, and no descriptor can then tell whether it was
    copied. In the closed-form world the truth can.
    """
    pictures = emoji(size)
    flat = [name in FLAT for name in pictures.names]
    return replace(
        pictures,
        captions=tuple(own[:1] if plain else own for own, plain in zip(pictures.captions, flat, strict=True)),
        causes=tuple("" if plain else cause for cause, plain in zip(pictures.causes, flat, strict=True)),
    )
