"""The nearest pairs of a report: samples beside the training pictures that they are most like, as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.report.pictures import picture, training_picture
from experiments.report.samples import known
from experiments.run import records

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PAIRS = 12


def nearest_pairs(
    runs: Mapping[str, Path],
    frames: Mapping[str, pd.DataFrame],
    manifests: Mapping[str, Mapping[str, Any]],
    bank_images: Tensor,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(run, its samples most like the training set), each nearest picture once per run; plain values, for JSON.

    Args:
        runs, frames, manifests: folder, records and manifest by the name of the row.
        bank_images: (N, 3, H, W) in [−1, 1], what `nearest_index` counts in.
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
