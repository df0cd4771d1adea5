"""Ranges of seeds: a sample depends on its seed alone, so two runs of one setting must not share any."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from experiments.config.schema import ConfigError


def refuse_overlap(runs: Sequence[tuple[str, Any, range]]) -> None:
    """Refuses two runs of one setting that share a seed: the same sample would count twice.

    Args:
        runs: (name, setting, seeds) each.
    """
    for (a, setting, first), (b, other, second) in combinations(runs, 2):
        both = range(max(first.start, second.start), min(first.stop, second.stop))
        if setting == other and len(both):
            shared = f"{a} and {b} share the seeds {both.start} to {both.stop - 1}, whose samples would count twice"
            raise ConfigError([f"{shared}: keep seeds n_samples apart, or leave one run out"])
