"""What a claim is made of: a verdict, the numbers behind it and the interval that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.tables.cells import counted, interval, share

Claim = dict[str, str]
Metrics = Mapping[str, Any]
Z = 1.96
BY = {
    "truth_copies": "truth",
    "planted_copies": "judge, of planted pictures",
    "judge_copies": "judge",
    "copies": "guide",
}
"""Who counts copies, the most trusted first."""
TOO_FEW = "too few samples to tell"


def claim(text: str, holds: bool | None, *numbers: str) -> Claim:
    """One entry of the report. `holds` is None where nothing was measured that decides; the numbers say why."""
    verdict = "not measured" if holds is None else "holds" if holds else "does not hold"
    return {"claim": text, "verdict": verdict, "numbers": "; ".join(part for part in numbers if part)}


def rows_of(metrics: Mapping[str, Any], *names: str) -> list[Metrics] | None:
    """The metrics of these rows; None where one of them was not run."""
    rows = [metrics.get(name) for name in names]
    return rows if all(isinstance(row, Mapping) for row in rows) else None  # type: ignore[return-value]


def trusted(*rows: Metrics) -> str:
    """The most trusted count of copies that all rows have."""
    return next(key for key in BY if key == "copies" or all(counted(row, key) for row in rows))


def copies(row: Metrics, key: str) -> tuple[int, int]:
    """(copies, samples) by one of `BY`."""
    found = counted(row, key)
    if found is None:
        raise ValueError(f"{key}: nobody counted")
    return found


def told(before: tuple[int, int], after: tuple[int, int]) -> str:
    """Both counts, the second with its Wilson interval.

    >>> told((70, 144), (0, 144))
    '70/144 → 0/144 (0–2.6 %)'
    """
    return f"{before[0]}/{before[1]} → {share(*after)}"


def difference(after: tuple[int, int], before: tuple[int, int]) -> tuple[float, float, float]:
    """Share after less share before, with its 95 % interval (Newcombe 1998, method 10: from Wilson's intervals)."""
    (p, (low_p, high_p)), (q, (low_q, high_q)) = ((c / n, interval(c, n)) for c, n in (after, before))
    low = ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5
    high = ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5
    return p - q, p - q - low, p - q + high


def points(change: tuple[float, float, float]) -> str:
    """A difference of shares in percentage points."""
    middle, low, high = (signed(100 * value, 1) for value in change)
    return f"{middle} points ({low} to {high})"


def signed(value: float, digits: int) -> str:
    """
    >>> signed(-1.25, 1), signed(0.5, 2)
    ('−1.2', '+0.50')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def falls(change: tuple[float, float, float]) -> bool | None:
    """Whether something fell: no where it did not, yes where the interval excludes 0, else None."""
    middle, _, high = change
    return False if middle >= 0 else True if high < 0 else None


def at_most(value: float, half: float, bound: float) -> bool | None:
    """Whether value ± half lies below a bound as a whole; no where it lies above as a whole, else None."""
    return True if value + half <= bound else False if value - half > bound else None


def half_width(row: Metrics, key: str) -> float | None:
    """Of the 95 % interval of a number: over groups of seeds where there are several, else by its standard error."""
    if row.get(f"{key}_ci") is not None:
        return row[f"{key}_ci"]
    error = row.get(f"{key}_se")
    return None if error is None else Z * error


def ratio(row: Metrics | None) -> tuple[float, float] | None:
    """The Fréchet ratio to as many unguided samples that are no copies, and half its interval; None where unknown."""
    if row is None or row.get("matched_ratio") is None:
        return None
    half = half_width(row, "matched_ratio")
    return None if half is None else (row["matched_ratio"], half)
