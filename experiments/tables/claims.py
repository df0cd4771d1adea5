"""What the paper claims, held against what a sweep measured: one entry per claim that its rows can speak to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.tables.claim_numbers import Claim
from experiments.tables.claims_privacy import answers, clears, clears_strictly, judged, needs_sim
from experiments.tables.claims_rivals import beats, trade
from experiments.tables.claims_utility import aligned, always_on, dynamic, quality

ALL = (clears, clears_strictly, needs_sim, answers, dynamic, always_on, trade, beats, judged, quality, aligned)
"""In the paper's order; each takes the metrics by row and returns its claims, none where the rows are not there."""


def claims(metrics: Mapping[str, Any]) -> list[Claim]:
    """{"claim", "verdict", "numbers"} each; verdict: "holds", "does not hold", or "not measured" where nothing decides.

    Args:
        metrics: by row, as for `experiments.tables.table.render`.
    """
    return [one for ask in ALL for one in ask(metrics)]
