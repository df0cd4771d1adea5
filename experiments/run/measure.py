"""The metrics of a finished run, with the thresholds of its own similarity and judge and its own scorer."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amg.bank import TrainingBank
from amg.bank.view import View
from amg.metrics.alignment import Scorer, alignment
from amg.metrics.counts import Averaged
from amg.metrics.extractors import Extractor, features_of_files
from experiments.config.build import EXTRACTORS, Parts, complaint, device, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.run import records
from experiments.run.evaluate import ORDINARY, evaluate, matched, rows_of, thresholds_used

if TYPE_CHECKING:
    import pandas as pd


CACHE = Path("runs/.cache")


def measure(run: RunConfig, parts: Parts, run_dir: Path) -> dict[str, Any]:
    """All metrics of the samples that the run asks for."""
    similarity, judge, features = parts.similarity, parts.judge, extractor(run)
    metrics = evaluate(
        run_dir,
        similarity.copy,
        similarity.strict,
        judge.copy,
        features,
        None if features is None else reference(run, parts),
        CACHE,
        seeds=run.seeds,
    )
    metrics["thresholds"] = thresholds_used(similarity.copy, similarity.strict, judge.copy)
    if setting := metrics["fid_setting"]:
        setting["reference"] = f"{run.metrics.reference} ({setting['reference']})"
    metrics |= aligned(run, run_dir, CACHE, device(run.trainer))
    metrics["notes"] = notes(run, parts, metrics)
    if run.conditioning == "none" and parts.world.truth is not None:
        metrics["true_copy_rate"] = parts.world.truth.rate()
    return metrics


def notes(run: RunConfig, parts: Parts, metrics: dict[str, Any]) -> list[str]:
    """Returns the footnotes of a run: guide, judge, bank, and what could not be measured."""

    def named(key: str, similarity: Any) -> str:
        name, how = getattr(run, key).get("name"), getattr(similarity, "described", None)
        return f"{name} ({how})" if how else str(name)

    guide, judge = named("similarity", parts.similarity), named("judge", parts.judge)
    found = [f"Guide: {guide}. Judge, which gave no gradient: {judge}."]
    found += [f"Bank: {parts.bank.note}."] if parts.bank.note else []
    missing = metrics["alignment_missing"]
    return [*found, f"Alignment is not measured: {missing}."] if missing else found


def against_unguided(run: RunConfig, parts: Parts, run_dir: Path, unguided_dir: Path) -> dict[str, Any]:
    """Measures what a guidance changed: text alignment of the same seeds, and the Fréchet distance.

    That is compared with as many unguided samples that are no copies, since removing copies must not flatter.
    """
    found, chosen = {}, extractor(run)
    with suppress(FileNotFoundError):  # `measure` said which weights there are not
        if scorer := _scorer(run, device(run.trainer)):
            found = gained(*scorer, run_dir, unguided_dir, CACHE, run.seeds)
    if chosen is None:
        return found
    copy, pictures = parts.similarity.copy, reference(run, parts)
    return found | matched(run_dir, unguided_dir, copy, chosen, pictures, CACHE, seeds=run.seeds)


def extractor(run: RunConfig):
    from amg.metrics.extractors import efficientnet_lite0, inception

    with told("metrics.extractor"):
        if run.metrics.extractor == "none":
            return None
        if run.metrics.extractor == "inception":
            return inception()
        if run.metrics.extractor == "efficientnet_lite0":
            return efficientnet_lite0(size=96)  # ten times faster than 224 on a CPU; every table names it
        raise ValueError(f"{run.metrics.extractor} is none of {', '.join(EXTRACTORS)}")


def reference(run: RunConfig, parts: Parts) -> View:
    """The images that the Fréchet distance compares with, at the model's own size, else the bank's.

    Raises:
        ConfigError: for a folder whose images cannot be read.
    """
    folder = run.metrics.reference
    if folder == "bank":
        bank = parts.bank
        if bank.folder is None:
            return bank.pictures
        return TrainingBank(bank.rows, size=parts.model.side or bank.size).pictures
    size = parts.model.side or parts.bank.shape[1:]
    try:
        return TrainingBank.from_folder(folder, size, cache=None, captioned=False).pictures
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([complaint(run.metrics, "reference", error)]) from None


NAMES = ("alignment", "alignment_ordinary", "alignment_planted", "alignment_by", "alignment_missing")


def aligned(run: RunConfig, run_dir: Path, cache: Path | None, device: str) -> dict[str, Any]:
    """`alignment*` of a run, None where it has no prompts, no scorer, or the scorer's weights are not there.

    `alignment_by` says whose it is, `alignment_missing` which weights there are not.
    """
    found: dict[str, Any] = dict.fromkeys(NAMES)
    try:
        scorer = _scorer(run, device)
    except FileNotFoundError as error:
        return found | {"alignment_missing": str(error)}
    return found | scores(*scorer, run_dir, cache, run.seeds) if scorer else found


def scores(scorer: Scorer, name: str, run_dir: Path, cache: Path | None, seeds: range) -> dict[str, Any]:
    """Averages the alignment over the samples of a run, each a `Mean`.

    Args:
        name: of the scorer, with its resize.
    """
    rows = rows_of(run_dir, seeds)
    values = _values(scorer, name, run_dir, cache, rows)
    means = {f"alignment{kind}": Averaged()(values[mask]) if mask.any() else None for kind, mask in _kinds(rows)}
    return {**means, "alignment_by": name}


def gained(
    scorer: Scorer, name: str, run_dir: Path, unguided_dir: Path, cache: Path | None, seeds: range
) -> dict[str, Any]:
    """Alignment guided less unguided, seed by seed, as a `Mean` over the samples of each kind that has two or more."""
    frames = [rows_of(one, seeds) for one in (run_dir, unguided_dir)]
    both = set(frames[0]["seed"]) & set(frames[1]["seed"])  # what neither run refused
    frames = [frame[frame["seed"].isin(both)].reset_index(drop=True) for frame in frames]
    rows, places = frames[0], (run_dir, unguided_dir)
    guided, unguided = (_values(scorer, name, *one) for one in zip(places, (cache, cache), frames, strict=True))
    change = guided - unguided
    return {f"alignment_change{kind}": Averaged()(change[mask]) for kind, mask in _kinds(rows) if mask.sum() > 1}


def _kinds(rows: pd.DataFrame) -> list[tuple[str, torch.Tensor]]:
    """Returns the samples of each number: all, those of ordinary and of planted prompts."""
    ordinary, planted = rows["cause"] == "ordinary", ~rows["cause"].isin(ORDINARY)
    masks = {"": [True] * len(rows), "_ordinary": ordinary.tolist(), "_planted": planted.tolist()}
    return [(kind, torch.tensor(mask)) for kind, mask in masks.items()]


def _values(scorer: Scorer, name: str, run_dir: Path, cache: Path | None, rows: pd.DataFrame) -> torch.Tensor:
    """Each sample's alignment, (B,); images are embedded once and kept in the cache."""
    texts = rows["prompt"].tolist()
    once = list(dict.fromkeys(texts))
    words = torch.cat([scorer.text(once[i : i + 64]) for i in range(0, len(once), 64)])
    extractor = Extractor(f"scorer {name}", "its own", words.shape[1], lambda pixels: scorer.image(pixels / 127.5 - 1))
    pictures = features_of_files([records.picture_path(run_dir, seed) for seed in rows["seed"]], extractor, cache)
    return alignment(pictures, words[[once.index(text) for text in texts]])


def _scorer(run: RunConfig, device: str) -> tuple[Scorer, str] | None:
    return None if run.conditioning != "prompt" or run.metrics.scorer == "none" else named(run.metrics.scorer, device)


@lru_cache(maxsize=1)  # the rows of a table share it
def named(name: str, device: str) -> tuple[Scorer, str]:
    """A scorer of `metrics.scorer`, and how a table calls it.

    Raises:
        FileNotFoundError: where its weights are not there.
    """
    if name == "lab":
        from amg.worlds.lab import scorer

        return scorer(), "the lab's scorer, trained on the drawings"
    from amg.metrics.alignment import SOURCE, CLIPScorer

    source = SOURCE if name == "clip" else name
    return CLIPScorer(source, device), f"CLIP {Path(source).name}"
