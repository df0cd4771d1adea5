"""Run folders with real records and real pictures, whose truth a test sets by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from amg.metrics.values import Share, plain
from amg.worlds.drawings import CAUSES, training_images
from experiments.run import records

TIMES = [1.0, 0.75, 0.5, 0.25, 0.0]
LAMBDA = 0.5


def record(seed, **changes):
    """A record of a sample that is no copy and has no prompt; `changes` by column."""
    values = dict.fromkeys(records.SCHEMA.names) | {
        "seed": seed, "cause": "", "similarity": 0.1, "nearest_index": 0, "nearest_caption": "", "judge": math.nan,
        "judge_index": 0, "steps": 3, "steps_guided": 0, "trace_t": [], "trace_similarity": [], "trace_threshold": [],
        "trace_flagged": [], "norm_spe": 0.0, "norm_dup": 0.0, "norm_sim": 0.0, "dropped": 0, "seconds": 0.5,
    }  # fmt: skip
    assert set(changes) <= set(values)
    return values | changes


def write_run(folder: Path, guidance: str, copied: set[int], *, n: int = 8, unconditional: bool = False, **manifest):
    """n samples; those in `copied` are exact training pictures (σ_0 = 1), the others a faded one (σ_0 = 0.3).

    Without prompts where `unconditional`; else seed i has the cause (*CAUSES, "ordinary")[i mod 4].
    """
    images = training_images(32).images
    rows = []
    (folder / "pictures").mkdir(parents=True)
    for seed in range(n):
        index = 10 * seed
        final = 1.0 if seed in copied else 0.3
        similarity = np.linspace(0.1, final, len(TIMES)).tolist()
        cause = "" if unconditional else (*CAUSES, "ordinary")[seed % 4]
        rows.append(record(
            seed, prompt=None if unconditional else f"<b>prompt</b> & {seed}", cause=cause, similarity=final,
            nearest_index=index, nearest_caption=f"caption <{index}>", judge=final - 0.1, judge_index=index,
            truth=seed in copied, component="point", aligned=None if unconditional else True, steps=5,
            steps_guided=seed % 3, trace_t=TIMES, trace_similarity=similarity, trace_threshold=[LAMBDA] * len(TIMES),
            trace_flagged=[s > LAMBDA for s in similarity],
        ))  # fmt: skip
        pixels = images[index] if seed in copied else 0.5 + 0.5 * images[index]
        save(pixels, records.picture_path(folder, seed))
    records.append(folder, rows)
    facts = {"status": "done", "command": f"python run.py guidance={guidance}", "name": "small & <odd>", "seed": 0,
             "model": "closed_form", "guidance": guidance, "similarity": "pca", "judge": "nl2", "s0": 3.0,
             "n_samples": n,
             "sampler": {"scheduler": "diffusers.DDIMScheduler", "steps": 5, "eta": 0.0}, "machine": "x86_64, cpu",
             "versions": {"torch": "2.14"},
             "metrics": {"n": n, "copies": Share(len(copied), n), "fid": 9.5}}  # fmt: skip
    facts |= manifest
    facts.setdefault(
        "twin", repr([facts[key] for key in ("model", "similarity", "s0", "seed", "n_samples", "sampler")])
    )
    (folder / "manifest.json").write_text(json.dumps(plain(facts)))
    (folder / "config.yaml").write_text(f"guidance: {guidance}\nprompt: </pre><script>alert(1)</script>\n")
    return folder


def save(pixels: torch.Tensor, file: Path) -> None:
    """(3, H, W) in [−1, 1] as a PNG."""
    Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(file)
