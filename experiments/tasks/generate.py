"""One run: one configuration, one folder, one row of a table."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from experiments.config.bind import check, not_applicable
from experiments.config.schema import NotApplicable, RunConfig
from experiments.report.present import present, present_sweep
from experiments.run.folder import facts, folder, in_folder

__all__ = ["generate_run", "present_sweep", "run"]  # a sweep looks for `present_sweep` where its task is


def run(cfg: DictConfig, command: str = "", in_sweep: bool = False) -> Path:
    """Checks the configuration, then does its task; returns the run's folder.

    Raises:
        ConfigError: for everything that is the user's to mend; `NotApplicable` where the model cannot do it.
    """
    config = check(cfg)
    if reason := not_applicable(config):
        raise NotApplicable([reason])
    from experiments.config.build import component

    return component(config.task, run=config, command=command, in_sweep=in_sweep)


def generate_run(run: RunConfig, command: str = "", in_sweep: bool = False, draw: bool = True) -> Path:
    """`task=generate` and `task=evaluate`: samples, their metrics, table and report; returns the run's folder.

    Args:
        draw: draws the seeds that are missing on disk; False measures what is there.
    """
    from experiments.config.build import build
    from experiments.report.loggers import log
    from experiments.run.conditions import by_seed, conditions
    from experiments.run.draw import generate
    from experiments.run.measure import measure

    parts = build(run, measures=True)
    chosen = conditions(run, parts.world)
    run_dir = folder(run, parts, chosen)
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # Lightning started this process to draw its share, no more
        generate(run, parts, by_seed(run, chosen), run_dir)
        return run_dir
    said = {"command": command, "evaluated_by": None} if draw else {"evaluated_by": command}
    with in_folder(run, run_dir, said | facts(run, parts, chosen), draw=draw) as manifest:
        drawn = generate(run, parts, by_seed(run, chosen), run_dir) if draw else 0
        metrics = measure(run, parts, run_dir)
        manifest.write(status="done", metrics=metrics)
        present(run, parts, run_dir, metrics, drawn, in_sweep)
        log(run, run_dir, metrics)
    return run_dir
