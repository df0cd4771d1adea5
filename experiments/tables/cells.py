"""How a measured number is printed: every share with its count and interval, every unknown as what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHARES = ("share", "percent")
INTERVAL = "interval"
"""A number in [0, 1] that brings its own interval, `<key>_low` and `<key>_high`."""
SIMILARITIES = ("top5", "top1")
"""Metrics that are negated distances where the guide is nL2 (Eq. 8)."""
MISSING = "–"


def interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, both ends in [0, 1]."""
    from amg.metrics.counts import share as wilson

    if not 0 <= count <= n or n == 0:
        raise ValueError(f"a share needs 0 <= count <= n and n > 0, got {count} of {n}")
    found = wilson(count, n)
    return max(0.0, found["low"]), min(1.0, found["high"])


def percent(share: float) -> str:
    """Per cent without the sign: one decimal, more where that would print a wrong 0 or 100.

    >>> percent(0.0074), percent(0.00038), percent(0.0), percent(0.9996)
    ('0.7', '0.038', '0', '99.96')
    """
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}"
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if value >= 99.95 else f"{value:.1f}"


def share(count: int, n: int) -> str:
    """
    >>> share(0, 512)
    '0/512 (0–0.7 %)'
    """
    low, high = interval(count, n)
    return f"{count}/{n} ({percent(low)}–{percent(high)} %)"


def counted(metrics: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    """The count and n behind a share; its own `<key>_n` where it is not of all samples. None where nobody counted."""
    count, n = metrics.get(key), metrics.get(f"{key}_n")
    n = metrics.get("n") if n is None else n
    return (int(count), int(n)) if _known(count) and _known(n) and n > 0 else None


def measured(metrics: Mapping[str, Any], key: str, style: str, distance: bool = False) -> str:
    """One cell. `style` is "share", "percent" (of a number in [0, 1]), "interval" or a format such as ".2f".

    A mean over seed groups carries its interval, "1.20 ± 0.03" (`experiments.tables.pool`).
    """
    if style == "share":
        counts = counted(metrics, key)
        return MISSING if counts is None else share(*counts)
    value = metrics.get(key)
    if not _known(value):
        return MISSING
    half = metrics.get(f"{key}_ci")
    if style == "percent":
        return f"{percent(value)} %" if half is None else f"{percent(value)} ± {percent(half)} %"
    if style == INTERVAL:
        return f"{value:.3f} ({metrics[f'{key}_low']:.2f}–{metrics[f'{key}_high']:.2f})"
    mean = _signed(format(-value if distance and key in SIMILARITIES else value, style))
    return mean if half is None else f"{mean} ± {format(half, style)}"


def published(value: float, style: str) -> str:
    """A number with the paper's own digits; shares are per cent there."""
    return f"{value:.2f} %" if style in SHARES else f"{value:.3f}" if style == INTERVAL else _signed(f"{value:g}")


def raw(metrics: Mapping[str, Any], key: str, style: str, distance: bool = False) -> dict[str, Any]:
    """The numbers of one cell for machines: `key`, and with a share its n and interval."""
    if style == "share":
        counts = counted(metrics, key)
        if counts is None:
            return {}
        (count, n), (low, high) = counts, interval(*counts)
        return {key: count, f"{key}_n": n, f"{key}_low": low, f"{key}_high": high}
    value = metrics.get(key)
    if not _known(value):
        return {}
    if style == INTERVAL:
        return {name: metrics[name] for name in (key, f"{key}_low", f"{key}_high")}
    half = {f"{key}_ci": metrics[f"{key}_ci"]} if f"{key}_ci" in metrics else {}
    return {key: -value if distance and key in SIMILARITIES else value} | half


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _signed(text: str) -> str:
    """−0.00 is 0.00, and a minus is a minus."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else "−" + text[1:]
    return text
