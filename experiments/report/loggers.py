"""Loggers of a finished run and a finished sweep, besides its own folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amg.metrics.values import Share, plain
from experiments.config.build import component
from experiments.config.schema import RunConfig


def log(run: RunConfig, run_dir: Path, metrics: dict[str, Any], jobs: list[list[str]] | None = None) -> None:
    """Calls the logger of `conf/logger` with what was measured; where it fails, says so: the run itself is done.

    Args:
        run_dir: the run's folder, or that of a sweep.
        metrics: of the run; of a sweep none, its jobs have logged theirs.
        jobs: of a sweep, the overrides of each; None for a run.
    """
    try:
        component(run.logger, run=run, run_dir=run_dir, metrics=metrics, jobs=jobs)
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
    project: str = "memorization-free-diffusion",
    offline: bool = True,
    group: str | None = None,
) -> None:
    """Logs configuration, metrics, table, figures and per-sample records to Weights & Biases.

    The jobs of a sweep share a group, and so does one more run of type "sweep" with its tables and figures.

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
        settings |= {"job_type": run.guidance.get("name"), "config": run.model_dump()}
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
        for file in sorted([*run_dir.glob("table.csv"), *run_dir.glob("table-*/table.csv")]):
            printed = pandas.read_csv(file, dtype=str, keep_default_na=False)
            there.log({"table" if file.parent == run_dir else file.parent.name: wb.Table(dataframe=printed)})
        for figure in sorted((run_dir / "figures").glob("*.png")):
            there.log({figure.stem: wb.Image(str(figure))})


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
    """Whether the environment says that W&B is to do nothing, in its own way or in that of transformers."""
    said = os.environ.get("WANDB_DISABLED", "").lower()
    return os.environ.get("WANDB_MODE") == "disabled" or said in ("1", "on", "yes", "true")


def _numbers(metrics: Any) -> Any:
    """Shares and means as mappings of their parts, and a share's `share` beside its count."""
    if isinstance(metrics, Share):
        low, high = metrics.interval
        return plain(metrics) | {"share": metrics.value, "low": low, "high": high}
    return {key: _numbers(value) for key, value in metrics.items()} if isinstance(metrics, Mapping) else plain(metrics)
