"""The metrics of a finished run, with the thresholds of its own similarity and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from amg.bank.folder import read_folder
from experiments.config.build import Parts, device, told
from experiments.config.files import EXTRACTORS, complaint
from experiments.config.schema import ConfigError, RunConfig
from experiments.run.align import against, aligned
from experiments.run.evaluate import evaluate, matched, thresholds_used

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
        seeds=_seeds(run),
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
    """What a table must say: who counted, of which training pictures, and what could not be measured."""

    def named(key: str, similarity: Any) -> str:
        name, how = getattr(run, key).get("name"), getattr(similarity, "described", None)
        return f"{name} ({how})" if how else str(name)

    guide, judge = named("similarity", parts.similarity), named("judge", parts.judge)
    found = [f"Guide: {guide}. Judge, which gave no gradient: {judge}."]
    found += [f"Bank: {parts.bank.note}."] if parts.bank.note else []
    missing = metrics["alignment_missing"]
    return [*found, f"Alignment is not measured: {missing}."] if missing else found


def against_unguided(run: RunConfig, parts: Parts, run_dir: Path, unguided_dir: Path) -> dict[str, Any]:
    """What a guidance changed: text alignment of the same seeds, and the Fréchet distance against as many unguided
    samples that are no copies, since removing copies must not flatter.
    """
    gained, chosen = against(run, run_dir, unguided_dir, CACHE, device(run.trainer)), extractor(run)
    if chosen is None:
        return gained
    copy, pictures = parts.similarity.copy, reference(run, parts)
    return gained | matched(run_dir, unguided_dir, copy, chosen, pictures, CACHE, seeds=_seeds(run))


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


def reference(run: RunConfig, parts: Parts) -> Tensor:
    """The pictures that the Fréchet distance compares with, at the model's own size, else the bank's.

    Raises:
        ConfigError: for a folder whose pictures cannot be read.
    """
    folder = run.metrics.reference
    if folder == "bank":
        return parts.bank.images
    size = parts.model.side or tuple(parts.bank.images.shape[2:])
    try:
        return read_folder(folder, size, captioned=False)[0]
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([complaint(run.metrics, "reference", error)]) from None


def _seeds(run: RunConfig) -> range:
    return range(run.seed, run.seed + run.n_samples)
