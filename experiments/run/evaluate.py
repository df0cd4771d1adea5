"""Metrics of one run from its records on disk; only the Fréchet distance opens its images."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amg.bank.view import View
from amg.metrics import (
    Averaged,
    Counted,
    Share,
    TopSimilarity,
    features_of,
    features_of_files,
    fid,
    matched_distance,
)
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
    reference_pictures: Tensor | View | None,
    cache_dir: str | Path | None,
    seeds: Collection[int] | None = None,
) -> dict[str, Any]:
    """Measures a run: a `Share` for each count, a number for each percentile and distance.

    A metric is None if the records do not hold it: `truth_copies`, `bits` and `aligned*` without a closed form,
    `planted_copies` (the judge's copies of planted images) outside the lab, `judge_copies` and `judge_novel` without a
    judge, `steps_guided` and `samples_guided` for a rival of AMG, `fid` and `fid_setting` without an extractor.
    `by_cause` holds `n` and the shares of copies within each cause of memorization. `tries`, redraws per sample, and
    `refused` are None without `on_copy`; a refused sample is no copy, and has no part in percentiles and distances.

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
    rows = rows_of(run_dir, seeds, refused=True)
    counts, tries, shown = copies(rows, similarity_copy, judge_copy), rows["tries"].dropna(), _shown(rows)
    similarity, judge = _tensor(shown["similarity"]), _tensor(shown["judge"].dropna())
    guided = rows["steps_guided"].notna().all()  # unknown for a rival
    planted = ~rows["cause"].isin(ORDINARY)
    return {
        "n": len(rows),
        "top5": TopSimilarity(5)(similarity) if len(shown) else None,
        "top1": TopSimilarity(0)(similarity) if len(shown) else None,
        **{name: _share(flags) for name, flags in counts.items()},
        "strict": _share((rows["similarity"] > similarity_strict) & ~_refused(rows)),
        "judge_novel": _share(_judged_novel(shown, similarity_copy, judge_copy)),
        "judge_top5": TopSimilarity(5)(judge) if len(judge) else None,
        "by_cause": _by_cause(rows, counts),
        "bits": Averaged()(_tensor(bits)) if len(bits := shown["bits"].dropna()) else None,
        "aligned": _share(rows["aligned"]),
        "aligned_ordinary": _share(rows.loc[rows["cause"] == "ordinary", "aligned"]),
        "aligned_planted": _share(rows.loc[planted, "aligned"]),
        # a fraction without an interval: the steps of one sample are not independent
        "steps_guided": int(rows["steps_guided"].sum()) / max(int(rows["steps"].sum()), 1) if guided else None,
        "samples_guided": _share(rows["steps_guided"] > 0) if guided else None,
        "dropped": int(rows["dropped"].sum()),
        "tries": Averaged()(_tensor(tries)) if len(tries) else None,
        "refused": _share(rows["refused"]),
        "seconds": float(rows["seconds"].mean()),
        **_fid(run_dir, shown, extractor, reference_pictures, cache_dir),
    }


def _refused(rows: pd.DataFrame) -> pd.Series:
    """Marks the samples that a black image replaced; False where nothing was refused at all."""
    return rows["refused"].fillna(False).astype(bool)


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~_refused(rows)].reset_index(drop=True)


def copies(rows: pd.DataFrame, similarity_copy: float, judge_copy: float) -> dict[str, pd.Series]:
    """Flags the copies by guide, judge, judge of planted images and truth; unknown ones are missing values."""
    shown = ~_refused(rows)
    judged = (shown & (rows["judge"] > judge_copy)).astype("boolean").mask(rows["judge"].isna())
    return {
        "copies": shown & (rows["similarity"] > similarity_copy),
        "judge_copies": judged,
        "planted_copies": (rows["planted"] & judged).mask(rows["planted"].isna()),
        "truth_copies": (rows["truth"].astype("boolean") & shown).mask(rows["truth"].isna()),
    }


def matched(
    run_dir: str | Path,
    unguided_dir: str | Path,
    similarity_copy: float,
    extractor: Extractor,
    reference_pictures: Tensor | View,
    cache_dir: str | Path | None,
    seeds: Collection[int] | None = None,
) -> dict[str, Any]:
    """Fréchet distance of a guided run against as many unguided samples that are no copies (`matched_*`).

    A copy is what the closed form says where it speaks, else what lies beyond `similarity_copy`. `matched_setting`
    holds that, both sizes and the extractor. `matched_ratio` is a `Mean` whose standard error, about 0.04 at n = 100,
    errs upwards.
    """
    rows = rows_of(unguided_dir, seeds)
    known = bool(rows["truth"].notna().all())
    copied = (rows["truth"] if known else rows["similarity"] > similarity_copy).to_numpy(bool)
    guided = _features(run_dir, rows_of(run_dir, seeds), extractor, cache_dir)
    unguided = _features(unguided_dir, rows, extractor, cache_dir)
    reference = features_of(reference_pictures, extractor, cache_dir)
    result = matched_distance(guided, unguided, torch.tensor(copied), reference)
    setting = {"n": result.pop("n"), "reference_n": result.pop("reference_n"), "extractor": extractor.name}
    setting |= {"resize": extractor.resize, "by": "truth" if known else "similarity"}
    return {f"matched_{name}": value for name, value in result.items()} | {"matched_setting": setting}


def thresholds_used(similarity_copy: float, similarity_strict: float, judge_copy: float) -> str:
    """Names the thresholds of a table's counts in one line; a negative one is printed as nL2's distance."""

    def beyond(threshold: float) -> str:
        return f"nL2 < {-threshold:g}" if threshold < 0 else f"similarity > {threshold:g}"

    return (
        f"copies: {beyond(similarity_copy)}; strict: {beyond(similarity_strict)}; judge's copies: {beyond(judge_copy)}"
    )


def rows_of(run_dir: str | Path, seeds: Collection[int] | None, refused: bool = False) -> pd.DataFrame:
    """A run's records of some seeds, None for all; those of refused samples only where they are asked for.

    Raises:
        ValueError: for a run without any, or samples that diverged.
    """
    rows = records.read(run_dir)
    if seeds is not None:
        rows = rows[rows["seed"].isin(list(seeds))].reset_index(drop=True)
    rows = rows if refused else _shown(rows)
    if not len(rows):
        raise ValueError(f"{run_dir} holds no records{' of these seeds' if seeds else ''}: generate samples first")
    diverged = rows.loc[rows["similarity"].isna(), "seed"].tolist()
    if diverged:
        raise ValueError(f"{run_dir}: {len(diverged)} samples diverged (similarity is NaN), e.g. seed {diverged[0]}")
    return rows


def _judged_novel(rows: pd.DataFrame, similarity_copy: float, judge_copy: float) -> pd.Series:
    """The judge's false positives: its verdict on samples that are no copies, by the truth or else by the guide.

    Empty without a judge.
    """
    copied = rows["truth"] if rows["truth"].notna().all() else rows["similarity"] > similarity_copy
    novel = rows.loc[~copied.astype(bool), "judge"].dropna()
    return novel > judge_copy


def _fid(
    run_dir: str | Path,
    rows: pd.DataFrame,
    extractor: Extractor | None,
    reference: Tensor | View | None,
    cache_dir: str | Path | None,
) -> dict[str, Any]:
    if extractor is None or reference is None or len(rows) < 2:
        return {"fid": None, "fid_setting": None}
    features = _features(run_dir, rows, extractor, cache_dir)
    setting = {"n": len(features), "reference": f"{len(reference)} images", "extractor": extractor.name}
    distance = fid(features, features_of(reference, extractor, cache_dir), extractor)
    return {"fid": distance, "fid_setting": setting | {"resize": extractor.resize}}


def _features(run_dir: str | Path, rows: pd.DataFrame, extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    files = [records.picture_path(run_dir, seed) for seed in rows["seed"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are missing, e.g. {missing[0]}: run the same command to resume")
    return features_of_files(files, extractor, cache_dir)


def _by_cause(rows: pd.DataFrame, counts: dict[str, pd.Series]) -> dict[str, dict[str, Any]]:
    """Counts the samples of each cause, and the shares of copies among those that are known."""
    return {
        cause: {"n": len(group)} | {name: _share(flags[group.index]) for name, flags in counts.items()}
        for cause, group in rows.groupby("cause")
        if cause
    }


def _share(flags: pd.Series) -> Share | None:
    """The share of True among the values that are known; None if none is."""
    known = flags.dropna()
    return Counted()(torch.tensor(known.to_numpy(bool))) if len(known) else None


def _tensor(values: pd.Series) -> Tensor:
    return torch.tensor(values.to_numpy(), dtype=torch.float64)
