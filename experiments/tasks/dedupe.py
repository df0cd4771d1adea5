"""`task=dedupe`: finds the near-copies among the training pictures, which nL2 must not refer to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amg.bank.dedupe import reference
from experiments.config.build import bank_of, told
from experiments.config.schema import RunConfig
from experiments.tasks.task import Task


@dataclass(frozen=True)
class Dedupe(Task):
    """Prints how many pictures go and how many stay; returns the file that keeps the answer.

    Runs with `data.deduplicate=<threshold>` read it and search nothing.

    Args:
        threshold, k, scale: see `amg.bank.dedupe.dedupe`.
    """

    threshold: float = 1.0
    k: int = 50
    scale: float = 0.5

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        bank = bank_of(config, deduplicate=None)
        start = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress, told("task"):
            bar = progress.add_task("pictures searched", total=len(bank))
            kept, file = reference(
                bank, self.threshold, self.k, self.scale, on_block=lambda n: progress.update(bar, advance=n)
            )
            progress.update(bar, completed=len(bank))
        print(
            f"data={config.data.get('name')}: {int(bank.multiplicity.sum()):,} pictures, {len(bank):,} distinct, "
            f"{len(bank) - len(kept):,} near-copies left out "
            f"(nL2 below {self.threshold:g}, k={self.k}, α={self.scale:g}), "
            f"{len(kept):,} to refer to; {time.perf_counter() - start:.1f} s\nkept in {file}"
        )
        return file
