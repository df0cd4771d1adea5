"""Claims about the rivals: what they pay for privacy, and whether one does as well as AMG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.tables.claim_numbers import (
    BY,
    TOO_FEW,
    Claim,
    Metrics,
    claim,
    copies,
    difference,
    falls,
    half_width,
    rows_of,
    signed,
    trusted,
)

RIVALS = ("gni", "rt", "cwr", "rna", "wen", "ren", "stp", "dtp", "og", "han_batch", "broken_memories")
"""Rows that are no form of AMG."""


def trade(metrics: Mapping[str, Any]) -> list[Claim]:
    """Each rival that removes copies loses text alignment, over all prompts and the same seeds."""
    rivals = _measured(metrics)
    if not rivals or not rows_of(metrics, "none"):
        return []
    none = metrics["none"]
    key = trusted(none, *rivals.values())
    private = {
        name: row for name, row in rivals.items() if falls(difference(copies(row, key), copies(none, key))) is True
    }
    free = [name for name, row in private.items() if _change(row)[0] + _change(row)[1] >= 0]
    idle = [name for name in rivals if name not in private]
    numbers = [f"copies by the {BY[key]} and change of alignment: none {_of(copies(none, key))}"]
    numbers += [_described(name, row, key) for name, row in private.items()]
    numbers += [f"paying nothing beyond chance: {', '.join(free)}"] if free else []
    numbers += [f"removing none beyond chance: {', '.join(idle)}"] if idle else []
    return [claim("Rivals trade text alignment for privacy", not free if private else None, *numbers)]


def beats(metrics: Mapping[str, Any]) -> list[Claim]:
    """No rival leaves as few copies as AMG at its text alignment."""
    rivals = _measured(metrics)
    if not rivals or not rows_of(metrics, "none", "full") or metrics["full"].get("alignment_change") is None:
        return []
    full = metrics["full"]
    key = trusted(full, *rivals.values())
    verdicts = {name: _worse(row, full, key) for name, row in rivals.items()}
    equals = [name for name, worse in verdicts.items() if worse is False]
    unclear = [name for name, worse in verdicts.items() if worse is None]
    numbers = [f"by the {BY[key]} {_described('AMG', full, key)}"]
    numbers += [f"no worse: {', '.join(_described(name, rivals[name], key) for name in equals)}"] if equals else []
    numbers += [f"{TOO_FEW}: {', '.join(unclear)}"] if unclear else []
    holds = False if equals else None if unclear else True
    return [claim("No rival leaves as few copies as AMG at AMG's text alignment", holds, *numbers)]


def _measured(metrics: Mapping[str, Any]) -> dict[str, Metrics]:
    """The rivals whose alignment was compared with that of unguided samples."""
    rows = {name: metrics[name] for name in RIVALS if rows_of(metrics, name)}
    return {name: row for name, row in rows.items() if row.get("alignment_change") is not None}


def _worse(rival: Metrics, full: Metrics, key: str) -> bool | None:
    """Whether a rival is worse in one of the two beyond chance; no where it is as good in both, else None."""
    (change, half), (own, own_half) = _change(rival), _change(full)
    apart = (half**2 + own_half**2) ** 0.5
    fewer = difference(copies(full, key), copies(rival, key))
    if falls(fewer) is True or change + apart < own:
        return True
    return False if fewer[0] >= 0 and change >= own else None


def _change(row: Metrics) -> tuple[float, float]:
    """Change of alignment over all prompts, and half its interval."""
    return row["alignment_change"], half_width(row, "alignment_change") or 0.0


def _described(name: str, row: Metrics, key: str) -> str:
    change, half = _change(row)
    return f"{name} {_of(copies(row, key))}, {signed(change, 1)} ± {half:.1f}"


def _of(count: tuple[int, int]) -> str:
    return f"{count[0]}/{count[1]}"
