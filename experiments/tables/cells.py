"""Print of a measured value: every share with its count and interval, every unknown as a dash."""

from __future__ import annotations

from typing import Any

from amg.metrics.values import Bounds, Mean, Share, number, percent

SHARES = ("share", "percent")
INTERVAL = "interval"
"""A number in [0, 1] with its own `Bounds`."""
SIMILARITIES = ("top5", "top1")
"""Metrics that are negated distances where the guide is nL2 (Eq. 8)."""
MISSING = "–"


def measured(value: Any, style: str) -> str:
    """Prints one cell.

    Args:
        value: a `Share`, `Mean`, `Bounds` or number; a dash is printed for all else. A mean over groups of seeds
            carries its interval: 1.20 ± 0.03.
        style: "share" prints a `Share`, "percent" a number in [0, 1], "interval" `Bounds`; else a format such as ".2f".
    """
    if style == "share":
        return str(value) if isinstance(value, Share) and value.n else MISSING
    middle = number(value)
    if middle is None:
        return MISSING
    if style == INTERVAL and isinstance(value, Bounds):
        return f"{middle:.3f} ({value.low:.2f}–{value.high:.2f})"
    half = _spread(value)
    if style == "percent":
        return f"{percent(middle)} %" if half is None else f"{percent(middle)} ± {percent(half)} %"
    mean = _signed(format(middle, style))
    return mean if half is None else f"{mean} ± {format(half, style)}"


def published(value: float, style: str) -> str:
    """Prints a number with the paper's own digits; shares are per cent there."""
    return f"{value:.2f} %" if style in SHARES else f"{value:.3f}" if style == INTERVAL else _signed(f"{value:g}")


def raw(key: str, value: Any) -> dict[str, Any]:
    """The numbers of one cell as columns of a CSV: `key`, and beside it the n and interval of a value that has them."""
    middle = number(value)
    if middle is None:
        return {}
    if isinstance(value, Share):
        low, high = value.interval
        return {key: value.count, f"{key}_n": value.n, f"{key}_low": low, f"{key}_high": high}
    if isinstance(value, Bounds):
        return {key: middle, f"{key}_low": value.low, f"{key}_high": value.high}
    half = _spread(value)
    return {key: middle} if half is None else {key: middle, f"{key}_ci": half}


def negated(value: Any) -> Any:
    """A similarity as the distance that it negates."""
    return value._replace(mean=-value.mean) if isinstance(value, Mean) else value if value is None else -value


def _spread(value: Any) -> float | None:
    """Half the interval of a mean over groups of seeds; one run prints its mean alone."""
    return value.half_width if isinstance(value, Mean) and value.groups > 1 else None


def _signed(text: str) -> str:
    """−0.00 is 0.00, and a minus is a minus."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else "−" + text[1:]
    return text
