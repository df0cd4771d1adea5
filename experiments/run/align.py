"""How well a run's pictures fit their prompts: mean cosine × 100 by a scorer, all, ordinary and planted ones."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amg.metrics.alignment import Scorer, alignment
from amg.metrics.counts import Averaged
from amg.metrics.extractors import Extractor, features_of_files
from experiments.config.schema import RunConfig
from experiments.run import records
from experiments.run.evaluate import ORDINARY, rows_of

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("alignment", "alignment_ordinary", "alignment_planted", "alignment_by", "alignment_missing")


def aligned(run: RunConfig, run_dir: Path, cache: Path | None, device: str) -> dict[str, Any]:
    """`alignment*` of a run, None where it has no prompts, no scorer, or the scorer's weights are not there.

    `alignment_by` says whose it is, `alignment_missing` which weights there are not.
    """
    found: dict[str, Any] = dict.fromkeys(NAMES)
    if run.conditioning != "prompt" or run.metrics.scorer == "none":
        return found
    try:
        scorer, name = named(run.metrics.scorer, device)
    except FileNotFoundError as error:
        return found | {"alignment_missing": str(error)}
    return found | scores(scorer, name, run_dir, cache, range(run.seed, run.seed + run.n_samples))


def scores(scorer: Scorer, name: str, run_dir: Path, cache: Path | None, seeds: range) -> dict[str, Any]:
    """Averages the alignment over the samples of a run, each a `Mean`.

    Args:
        name: of the scorer, with its resize.
    """
    rows = rows_of(run_dir, seeds)
    values = _values(scorer, name, run_dir, cache, rows)
    means = {f"alignment{kind}": Averaged()(values[mask]) if mask.any() else None for kind, mask in _kinds(rows)}
    return {**means, "alignment_by": name}


def against(run: RunConfig, run_dir: Path, unguided_dir: Path, cache: Path | None, device: str) -> dict[str, Any]:
    """`alignment_change*` of a run against its unguided twin; nothing where alignment is not measured."""
    if run.conditioning != "prompt" or run.metrics.scorer == "none":
        return {}
    try:
        scorer, name = named(run.metrics.scorer, device)
    except FileNotFoundError:
        return {}
    return gained(scorer, name, run_dir, unguided_dir, cache, range(run.seed, run.seed + run.n_samples))


def gained(
    scorer: Scorer, name: str, run_dir: Path, unguided_dir: Path, cache: Path | None, seeds: range
) -> dict[str, Any]:
    """Alignment guided less unguided, seed by seed, as a `Mean` over the samples of each kind that has two or more."""
    rows = rows_of(run_dir, seeds)
    guided, unguided = (_values(scorer, name, one, cache, rows_of(one, seeds)) for one in (run_dir, unguided_dir))
    change = guided - unguided
    return {f"alignment_change{kind}": Averaged()(change[mask]) for kind, mask in _kinds(rows) if mask.sum() > 1}


def _kinds(rows: pd.DataFrame) -> list[tuple[str, torch.Tensor]]:
    """Which samples each number is over: all, those of ordinary and of planted prompts."""
    ordinary, planted = rows["cause"] == "ordinary", ~rows["cause"].isin(ORDINARY)
    masks = {"": [True] * len(rows), "_ordinary": ordinary.tolist(), "_planted": planted.tolist()}
    return [(kind, torch.tensor(mask)) for kind, mask in masks.items()]


def _values(scorer: Scorer, name: str, run_dir: Path, cache: Path | None, rows: pd.DataFrame) -> torch.Tensor:
    """Each sample's alignment, (B,); pictures are embedded once and kept in the cache."""
    texts = rows["prompt"].tolist()
    once = list(dict.fromkeys(texts))
    words = torch.cat([scorer.text(once[i : i + 64]) for i in range(0, len(once), 64)])
    extractor = Extractor(f"scorer {name}", "its own", words.shape[1], lambda pixels: scorer.image(pixels / 127.5 - 1))
    pictures = features_of_files([records.picture_path(run_dir, seed) for seed in rows["seed"]], extractor, cache)
    return alignment(pictures, words[[once.index(text) for text in texts]])


@lru_cache(maxsize=1)  # the rows of a table share it
def named(name: str, device: str) -> tuple[Scorer, str]:
    """A scorer of `metrics.scorer`, and how a table calls it.

    Raises:
        FileNotFoundError: where its weights are not there.
    """
    if name == "lab":
        from amg.worlds.lab import scorer

        return scorer(), "the lab's scorer, trained on the emoji"
    from amg.metrics.alignment import SOURCE, CLIPScorer

    source = SOURCE if name == "clip" else name
    return CLIPScorer(source, device), f"CLIP {Path(source).name}"
