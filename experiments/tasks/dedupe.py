"""`task=dedupe`: finds the near-copies among the training pictures, which nL2 must not refer to."""

from __future__ import annotations

import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amg.bank.dedupe import reference
from experiments.config.build import bank_of, told
from experiments.config.schema import RunConfig


def dedupe_run(run: RunConfig, threshold: float = 1.0, k: int = 50, scale: float = 0.5) -> Path:
    """Prints how many pictures go and how many stay; returns the file that keeps the answer.

    Runs with `data.deduplicate=<threshold>` read it and search nothing.

    Args:
        threshold, k, scale: see `amg.bank.dedupe.dedupe`.
    """
    bank = bank_of(run, deduplicate=None)
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, told("task"):
        bar = progress.add_task("pictures searched", total=len(bank))
        kept, file = reference(bank, threshold, k, scale, on_block=lambda n: progress.update(bar, advance=n))
        progress.update(bar, completed=len(bank))
    print(
        f"data={run.data.get('name')}: {int(bank.multiplicity.sum()):,} pictures, {len(bank):,} distinct, "
        f"{len(bank) - len(kept):,} near-copies left out (nL2 below {threshold:g}, k={k}, α={scale:g}), "
        f"{len(kept):,} to refer to; {time.perf_counter() - start:.1f} s\nkept in {file}"
    )
    return file
