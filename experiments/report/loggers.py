"""Where a finished run, and a finished sweep, is logged besides its own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amg.metrics.values import Share, plain
from experiments.config.build import component
from experiments.config.schema import RunConfig


def log(run: RunConfig, run_dir: Path, metrics: dict[str, Any], jobs: list[list[str]] | None = None) -> None:
    """Calls the logger of `conf/logger` with what was measured.

    Args:
        run_dir: the run's folder, or that of a sweep.
        metrics: of the run; of a sweep none, its jobs have logged theirs.
        jobs: of a sweep, the overrides of each; None for a run.
    """
    component({**run.logger}, run=run, run_dir=run_dir, metrics=metrics, jobs=jobs)


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
        offline: writes to `<run_dir>/wandb` without account or network; `wandb sync` uploads it later.
        group: of the runs; the run's `name` where None.
    """
    import pandas
    import wandb as wb

    from experiments.run import records

    settings = {"project": project, "offline": offline, "group": group or run.name, "name": run_dir.name}
    if jobs is None:
        settings |= {"job_type": run.guidance.get("name"), "config": run.model_dump()}
    else:
        settings |= {"job_type": "sweep", "config": {"name": run.name, "jobs": jobs}}
    with _logger(run_dir, **settings) as logger:
        if jobs is None:
            flat = pandas.json_normalize(_numbers(metrics), sep="/").iloc[0].to_dict()
            logger.log_metrics({key: value for key, value in flat.items() if isinstance(value, (int, float))})
            table = records.read(run_dir)
            plain = table[[name for name in table.columns if not name.startswith("trace_")]]
            plain = plain.astype(object).where(plain.notna(), None)  # W&B knows no pandas.NA
            logger.experiment.log({"samples": wb.Table(dataframe=plain)})
        for file in sorted([*run_dir.glob("table.csv"), *run_dir.glob("table-*/table.csv")]):
            printed = pandas.read_csv(file, dtype=str, keep_default_na=False)
            name = "table" if file.parent == run_dir else file.parent.name
            logger.experiment.log({name: wb.Table(dataframe=printed)})
        for figure in sorted((run_dir / "figures").glob("*.png")):
            logger.experiment.log({figure.stem: wb.Image(str(figure))})


def _numbers(metrics: Any) -> Any:
    """Shares and means as mappings of their parts, and a share's `share` beside its count."""
    if isinstance(metrics, Share):
        low, high = metrics.interval
        return plain(metrics) | {"share": metrics.value, "low": low, "high": high}
    return {key: _numbers(value) for key, value in metrics.items()} if isinstance(metrics, Mapping) else plain(metrics)


@contextmanager
def _logger(run_dir: Path, **settings: Any) -> Iterator[Any]:
    """Lightning's logger with a run of its own, and the environment as it was before."""
    import wandb as wb
    from lightning.pytorch.loggers import WandbLogger

    before = os.environ.get("WANDB_MODE")
    try:
        yield WandbLogger(save_dir=str(run_dir.absolute()), **settings)  # its service keeps the folder it started in
    finally:
        wb.finish()  # or the next job of a sweep would write into this run
        if before is None:
            os.environ.pop("WANDB_MODE", None)  # Lightning leaves it at dryrun
        else:
            os.environ["WANDB_MODE"] = before
