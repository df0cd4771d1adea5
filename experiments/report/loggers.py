"""Loggers of a finished run and a finished sweep, besides its own folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amg.metrics.values import Share, plain
from experiments.config.build import component
from experiments.config.schema import RunConfig
from experiments.run.folder import Manifest

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

SHOWN = 16
"""Samples beside their nearest training images."""


def log(
    run: RunConfig,
    run_dir: Path,
    metrics: dict[str, Any],
    jobs: list[list[str]] | None = None,
    training: Sequence[Tensor] | None = None,
) -> None:
    """Calls the logger of `conf/logger` with what was measured; where it fails, says so: the run itself is done.

    Args:
        run_dir: the run's folder, or that of a sweep.
        metrics: of the run; of a sweep none, its jobs have logged theirs.
        jobs: of a sweep, the overrides of each; None for a run.
        training: the bank's images, (3, H, W) in [−1, 1]; None for a sweep.
    """
    try:
        component(run.logger, run=run, run_dir=run_dir, metrics=metrics, jobs=jobs, training=training)
    except Exception as error:
        name = run.logger.get("name") or run.logger["_target_"].rpartition(".")[2]
        warnings.warn(f"logger={name} failed, and {run_dir} is whole: {type(error).__name__}: {error}", stacklevel=1)


def csv() -> None:
    """Records (Parquet), metrics (JSON) and table (CSV) are in the run's folder already."""


def wandb(
    run: RunConfig,
    run_dir: Path,
    metrics: dict[str, Any],
    jobs: list[list[str]] | None = None,
    training: Sequence[Tensor] | None = None,
    project: str = "memorization-free-diffusion",
    offline: bool = True,
    group: str | None = None,
) -> None:
    """Logs configuration, metrics, table, figures, records and samples to Weights & Biases.

    The samples most similar to a training image are shown beside it. Hashes of bank, λ_t and weights are in the
    configuration; tags name model, guidance and similarity. The jobs of a sweep share a group, and so does one more
    run of type "sweep" with its tables and figures.

    Args:
        project: the project's name there.
        offline: writes to `<run_dir>/wandb` without account or network; `wandb sync` uploads it later. Nothing is
            written where the environment has WANDB_MODE=disabled or WANDB_DISABLED=true.
        group: of the runs; the run's `name` where None.
    """
    if _disabled():
        return
    import pandas
    import wandb as wb

    from experiments.run import records

    settings: dict[str, Any] = {"project": project, "group": group or run.name, "name": run_dir.name}
    settings["dir"] = str(run_dir.absolute())  # its service keeps the folder that it started in
    if offline:
        settings["mode"] = "offline"
    if jobs is None:
        names = [getattr(run, node).get("name") for node in ("model", "guidance", "similarity")]
        told = Manifest(run_dir).read()
        digests = {"bank": told["bank"]["digest"]} | {key: told[key] for key in ("threshold", "weights")}
        settings |= {"job_type": run.guidance.get("name"), "config": run.model_dump() | {"digests": digests}}
        settings["tags"] = [name for name in names if name]
    else:
        settings |= {"job_type": "sweep", "config": {"name": run.name, "jobs": jobs}}
    with wb.init(**settings) as there:
        if jobs is None:
            flat = pandas.json_normalize(_numbers(metrics), sep="/").iloc[0].to_dict()
            there.log({key: value for key, value in flat.items() if isinstance(value, (int, float))})
            table = records.read(run_dir)
            plain = table[[name for name in table.columns if not name.startswith("trace_")]]
            plain = plain.astype(object).where(plain.notna(), None)  # W&B knows no pandas.NA
            there.log({"samples": wb.Table(dataframe=plain)})
            there.log({"nearest": [wb.Image(pair, caption=text) for pair, text in _beside(run_dir, table, training)]})
        for file in sorted([*run_dir.glob("table.csv"), *run_dir.glob("table-*/table.csv")]):
            printed = pandas.read_csv(file, dtype=str, keep_default_na=False)
            there.log({"table" if file.parent == run_dir else file.parent.name: wb.Table(dataframe=printed)})
        for figure in sorted((run_dir / "figures").glob("*.png")):
            there.log({figure.stem: wb.Image(str(figure))})


def _beside(run_dir: Path, table: DataFrame, training: Sequence[Tensor]) -> Iterator[tuple[np.ndarray, str]]:
    """Samples with their nearest training images on the right, (H, W, 3) uint8, and what is known of both.

    Each keeps its proportions; the lower one of a pair stands on white.
    """
    from experiments.report.pictures import enlarge, picture, training_picture

    for row in table.sort_values(["similarity", "seed"], ascending=[False, True]).head(SHOWN).to_dict("records"):
        pair = picture(run_dir, row["seed"]), training_picture(training, row["nearest_index"])
        shown = [enlarge(pixels) for pixels in pair]
        height = max(map(len, shown))
        both = [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=255) for p in shown]
        yield np.concatenate(both, axis=1), f"seed {row['seed']}, similarity {row['similarity']:.2f}"


def _ask_for_key(offline: bool = True) -> None:
    """Has W&B ask for its key before anything is drawn, where a run is to be online and none is set.

    Raises:
        ValueError: where there is no terminal to ask at.
    """
    if offline or _disabled() or os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun"):
        return
    import wandb as wb

    try:
        wb.login(verify=False)
    except wb.errors.UsageError:
        raise ValueError(
            "logger.offline=false: W&B has no key here: wandb login, or WANDB_API_KEY; logger.offline=true needs none"
        ) from None


wandb.find = _ask_for_key


def _disabled() -> bool:
    """Tells whether the environment says that W&B is to do nothing, in its own way or in that of transformers."""
    said = os.environ.get("WANDB_DISABLED", "").lower()
    return os.environ.get("WANDB_MODE") == "disabled" or said in ("1", "on", "yes", "true")


def _numbers(metrics: Any) -> Any:
    """Shares and means as mappings of their parts, and a share's `share` beside its count."""
    if isinstance(metrics, Share):
        low, high = metrics.interval
        return plain(metrics) | {"share": metrics.value, "low": low, "high": high}
    return {key: _numbers(value) for key, value in metrics.items()} if isinstance(metrics, Mapping) else plain(metrics)
