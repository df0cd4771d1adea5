"""The metrics of one run, from what is on disk: its records, and its pictures for the Fréchet distance alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amg.metrics import features_of, features_of_files, frechet_between, matched_distance, moments, share, top
from amg.metrics.counts import count_beyond
from experiments.run import records

if TYPE_CHECKING:
    import pandas as pd

    from amg.metrics.extractors import Extractor

ORDINARY = ("", "ordinary")


def evaluate(
    run_dir: str | Path,
    similarity_copy: float,
    similarity_strict: float,
    judge_copy: float,
    extractor: Extractor | None,
    reference_pictures: Tensor | None,
    cache_dir: str | Path | None,
    seeds: Collection[int] | None = None,
) -> dict[str, Any]:
    """A flat dict of a run's metrics.

    A share X comes as `X` (count), `X_share`, `X_low`, `X_high` (Wilson, 95 %) and, where it is not of all samples,
    `X_n`. All of them are None where the records do not say: `truth_copies*` without a closed form,
    `planted_copies*` (the judge's copies of planted pictures) outside the lab, `judge_copies*` without a judge,
    `judge_novel*` as well, `aligned*` without prompts, `*_guided*` for a rival of AMG.

    Args:
        run_dir: the run's folder.
        similarity_copy: beyond it the guiding similarity calls a sample a copy; nL2 is negated, 1.4 is −1.4.
        similarity_strict: the stricter threshold of the tables.
        judge_copy: the same for the similarity that did not guide.
        extractor: of the Fréchet distance; None leaves `fid*` None.
        reference_pictures: (N, 3, H, W) in [−1, 1]; None leaves `fid*` None.
        cache_dir: where features are kept, for all runs; None keeps nothing.
        seeds: samples to look at; None takes all that the folder holds, which may be more than a command asked for.
    Raises:
        ValueError: for a run without records, or samples that diverged.
    """
    rows = rows_of(run_dir, seeds)
    similarity, judge = _tensor(rows, "similarity"), _judge(rows)
    result: dict[str, Any] = {"n": len(rows), "top5": top(similarity, 5), "top1": top(similarity, 0)}
    result |= _flat("copies", share(count_beyond(similarity, similarity_copy), len(rows)))
    result |= _flat("strict", share(count_beyond(similarity, similarity_strict), len(rows)))
    result |= _flat("judge_copies", None if judge is None else share(count_beyond(judge, judge_copy), len(judge)))
    result |= _nullable("judge_novel", _judged_novel(rows, similarity_copy, judge_copy))
    result["judge_top5"] = None if judge is None else top(judge, 5)
    result |= _nullable("truth_copies", rows["truth"])
    planted_copies = (rows["planted"] & (rows["judge"] > judge_copy)).mask(rows["planted"].isna())
    result |= _nullable("planted_copies", planted_copies)
    result["copies_by_cause"] = _by_cause(rows, rows["similarity"] > similarity_copy)
    result["judge_copies_by_cause"] = None if judge is None else _by_cause(rows, rows["judge"] > judge_copy)
    result["planted_copies_by_cause"] = _by_cause(rows, planted_copies)
    result["truth_copies_by_cause"] = _by_cause(rows, rows["truth"])
    planted = ~rows["cause"].isin(ORDINARY)
    result |= _nullable("aligned", rows["aligned"])
    result |= _nullable("aligned_ordinary", rows.loc[rows["cause"] == "ordinary", "aligned"])
    result |= _nullable("aligned_planted", rows.loc[planted, "aligned"])
    known = bool(rows["steps_guided"].notna().all())
    result["steps_guided_share"] = int(rows["steps_guided"].sum()) / max(int(rows["steps"].sum()), 1) if known else None
    result |= _flat("samples_guided", share(int((rows["steps_guided"] > 0).sum()), len(rows)) if known else None)
    result["dropped"] = int(rows["dropped"].sum())
    result["seconds"] = float(rows["seconds"].mean())
    return result | _fid(run_dir, rows, extractor, reference_pictures, cache_dir)


def matched(
    run_dir: str | Path,
    unguided_dir: str | Path,
    similarity_copy: float,
    extractor: Extractor,
    reference_pictures: Tensor,
    cache_dir: str | Path | None,
    seeds: Collection[int] | None = None,
) -> dict[str, Any]:
    """Fréchet distance of a guided run against as many unguided samples that are no copies (`matched_*`).

    A copy is what the closed form says where it speaks, else what lies beyond `similarity_copy`; `matched_by` tells.
    Judge `matched_ratio` by its standard error `matched_ratio_se` (errs upwards): about 0.04 at n = 100.
    """
    rows = rows_of(unguided_dir, seeds)
    known = bool(rows["truth"].notna().all())
    copies = rows["truth"].to_numpy(bool) if known else (_tensor(rows, "similarity") > similarity_copy).numpy()
    guided = _features(run_dir, rows_of(run_dir, seeds), extractor, cache_dir)
    unguided = _features(unguided_dir, rows, extractor, cache_dir)
    reference = features_of(reference_pictures, extractor, cache_dir)
    result = matched_distance(guided, unguided, torch.from_numpy(copies), reference)
    names = {"extractor": extractor.name, "resize": extractor.resize, "by": "truth" if known else "similarity"}
    return {f"matched_{name}": value for name, value in (result | names).items()}


def thresholds_used(similarity_copy: float, similarity_strict: float, judge_copy: float) -> str:
    """Which thresholds a table's counts were made with, in one line; a negative one is printed as nL2's distance."""

    def beyond(threshold: float) -> str:
        return f"nL2 < {-threshold:g}" if threshold < 0 else f"similarity > {threshold:g}"

    return (
        f"copies: {beyond(similarity_copy)}; strict: {beyond(similarity_strict)}; judge's copies: {beyond(judge_copy)}"
    )


def rows_of(run_dir: str | Path, seeds: Collection[int] | None) -> pd.DataFrame:
    """A run's records of some seeds, None for all.

    Raises:
        ValueError: for a run without any, or samples that diverged.
    """
    rows = records.read(run_dir)
    if seeds is not None:
        rows = rows[rows["seed"].isin(list(seeds))].reset_index(drop=True)
    if not len(rows):
        raise ValueError(f"{run_dir} holds no records{' of these seeds' if seeds else ''}: generate samples first")
    diverged = rows.loc[rows["similarity"].isna(), "seed"].tolist()
    if diverged:
        raise ValueError(f"{run_dir}: {len(diverged)} samples diverged (similarity is NaN), e.g. seed {diverged[0]}")
    return rows


def _judge(rows: pd.DataFrame) -> Tensor | None:
    """The judge's similarities; None where there was no judge (all NaN)."""
    judge = _tensor(rows, "judge")
    return None if judge.isnan().all() else judge


def _judged_novel(rows: pd.DataFrame, similarity_copy: float, judge_copy: float) -> pd.Series:
    """What the judge calls copies among the samples that are none, by the truth or else by the guide: its false alarms.

    Empty without a judge.
    """
    copied = rows["truth"] if rows["truth"].notna().all() else rows["similarity"] > similarity_copy
    novel = rows.loc[~copied.astype(bool), "judge"].dropna()
    return novel > judge_copy


def _fid(
    run_dir: str | Path,
    rows: pd.DataFrame,
    extractor: Extractor | None,
    reference: Tensor | None,
    cache_dir: str | Path | None,
) -> dict[str, Any]:
    names = ("fid", "fid_n", "fid_reference_n", "fid_extractor", "fid_resize")
    if extractor is None or reference is None or len(rows) < 2:
        return dict.fromkeys(names)
    features = _features(run_dir, rows, extractor, cache_dir)
    distance = frechet_between(features, *moments(features_of(reference, extractor, cache_dir)))
    return dict(zip(names, (distance, len(features), len(reference), extractor.name, extractor.resize), strict=True))


def _features(run_dir: str | Path, rows: pd.DataFrame, extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    files = [records.picture_path(run_dir, seed) for seed in rows["seed"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} pictures are missing, e.g. {missing[0]}: run the same command to resume"
        )
    return features_of_files(files, extractor, cache_dir)


def _by_cause(rows: pd.DataFrame, copied: pd.Series) -> dict[str, Any] | None:
    """The share of copies of each cause, among the rows that are known; None where none is."""
    known = copied.dropna()
    if not len(known):
        return None
    groups = known.groupby(rows.loc[known.index, "cause"])
    return {cause: share(int(some.sum()), len(some)) for cause, some in groups if cause}


def _nullable(name: str, values: pd.Series) -> dict[str, Any]:
    """The share of True among the values that are known."""
    known = values.dropna()
    result = share(int(known.sum()), len(known)) if len(known) else None
    return _flat(name, result) | {f"{name}_n": result and result["n"]}


def _flat(name: str, result: dict[str, Any] | None) -> dict[str, Any]:
    result = result or dict.fromkeys(("count", "share", "low", "high"))
    return {name: result["count"]} | {f"{name}_{part}": result[part] for part in ("share", "low", "high")}


def _tensor(rows: pd.DataFrame, column: str) -> Tensor:
    return torch.tensor(rows[column].to_numpy(), dtype=torch.float64)
