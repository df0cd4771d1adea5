"""Where a finished run is logged besides its own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from experiments.build import component
from experiments.config import RunConfig


def log(run: RunConfig, run_dir: Path, metrics: dict[str, Any]) -> None:
    """Calls the logger of `conf/logger` with what was measured."""
    component({**run.logger}, run=run, run_dir=run_dir, metrics=metrics)


def csv() -> None:
    """Records (Parquet), metrics (JSON) and table (CSV) are in the run's folder already."""


def wandb(
    run: RunConfig,
    run_dir: Path,
    metrics: dict[str, Any],
    project: str = "memorization-free-diffusion",
    offline: bool = True,
) -> None:
    """Logs configuration, metrics, table, figures and per-sample records to Weights & Biases.

    Args:
        project: the project's name there.
        offline: writes to `<run_dir>/wandb` without account or network; `wandb sync` uploads it later.
    """
    import pandas
    import wandb as wb
    from lightning.pytorch.loggers import WandbLogger

    from amg import records

    before = os.environ.get("WANDB_MODE")
    try:
        logger = WandbLogger(
            project=project,
            offline=offline,
            save_dir=str(run_dir.absolute()),  # its service keeps the folder it was started in
            group=run.name,
            job_type=run.guidance.get("name"),
            config=run.model_dump(),
        )
        flat = pandas.json_normalize(metrics, sep="/").iloc[0].to_dict()
        logger.log_metrics({key: value for key, value in flat.items() if isinstance(value, (int, float))})
        table = records.read(run_dir)
        plain = table[[name for name in table.columns if not name.startswith("trace_")]]
        plain = plain.astype(object).where(plain.notna(), None)  # W&B knows no pandas.NA
        logger.experiment.log({"samples": wb.Table(dataframe=plain)})
        printed = pandas.read_csv(run_dir / "table.csv", dtype=str, keep_default_na=False)
        logger.experiment.log({"table": wb.Table(dataframe=printed)})
        for figure in sorted((run_dir / "figures").glob("*.png")):
            logger.experiment.log({figure.stem: wb.Image(str(figure))})
    finally:
        wb.finish()  # or the next job of a sweep would write into this run
        if before is None:
            os.environ.pop("WANDB_MODE", None)  # Lightning leaves it at dryrun
        else:
            os.environ["WANDB_MODE"] = before
