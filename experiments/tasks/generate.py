"""One run: one configuration, one folder, one row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig
from experiments.report.present import present, present_sweep
from experiments.run.folder import facts, folder, in_folder
from experiments.tasks.task import Task


@dataclass(frozen=True)
class Generate(Task):
    """`task=generate` and `task=evaluate`: samples, their metrics, table and report; returns the run's folder.

    Args:
        draw: draws the seeds that are missing on disk; False measures what is there.
    """

    builds = True

    draw: bool = True

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        from experiments.config.build import build
        from experiments.report.loggers import log
        from experiments.run.draw import by_seed, conditions, generate, helps
        from experiments.run.measure import measure

        parts = build(config, measures=True)
        chosen = conditions(config, parts.world)
        run_dir = folder(config, parts, chosen)
        plan = by_seed(config, chosen)
        if helps(config, parts, plan, run_dir):
            return run_dir
        said = {"command": command, "evaluated_by": None} if self.draw else {"evaluated_by": command}
        with in_folder(config, run_dir, said | facts(config, parts, chosen), draw=self.draw) as manifest:
            drawn = generate(config, parts, plan, run_dir) if self.draw else 0
            metrics = measure(config, parts, run_dir)
            manifest.write(status="done", metrics=metrics)
            present(config, parts, run_dir, metrics, drawn, in_sweep)
            log(config, run_dir, metrics, training=parts.bank.pictures)
        return run_dir

    @staticmethod
    def present(results: Sequence[Mapping[str, Any]], command: str = "") -> Path:
        return present_sweep(results, command)
