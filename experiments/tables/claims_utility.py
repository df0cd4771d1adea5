"""Claims about what privacy costs: picture quality, text alignment, and when to guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.tables.cells import counted, percent, share
from experiments.tables.claim_numbers import (
    BY,
    TOO_FEW,
    Claim,
    at_most,
    claim,
    copies,
    difference,
    half_width,
    points,
    ratio,
    rows_of,
    signed,
    trusted,
)

KEPT = 1.03
"""Quality is kept where the Fréchet distance is at most this multiple of that of as many unguided non-copies."""
RUINED = 1.5
"""Quality is ruined beyond this multiple; the paper's Table 5 has 35."""
DYNAMIC = ("parabolic", "calibrated")
"""Rows of Table 5 that differ from `constant` in λ_t alone."""
LOST = 0.05
"""Share of the unguided alignment that may go; in the paper's Table 1 AMG loses 0.04, RT 0.19."""


def quality(metrics: Mapping[str, Any]) -> list[Claim]:
    """AMG's pictures are as near to the training set's distribution as unguided ones that are no copies."""
    found = {name: ratio(metrics[name]) for name in ("unconditional_full", "full") if rows_of(metrics, name)}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return []
    verdicts = [at_most(*value, KEPT) for value in known.values()]
    holds = False if False in verdicts else None if None in verdicts else True
    numbers = [f"{name}: {value:.3f} ± {half:.3f}" for name, (value, half) in known.items()]
    text = "AMG keeps picture quality (Fréchet distance within 3 % of that of unguided pictures that are no copies)"
    return [claim(text, holds, *numbers, TOO_FEW if holds is None else "")]


def aligned(metrics: Mapping[str, Any]) -> list[Claim]:
    """AMG loses no more than 5 % of the unguided text alignment: same seeds compared."""
    if not (rows := rows_of(metrics, "none", "full")):
        return []
    before, after = rows
    found = []
    kinds = {"_ordinary": "ordinary captions", "_planted": "captions of memorized pictures", "": "all captions"}
    measured = [kind for kind in kinds if after.get(f"alignment_change{kind}") is not None]
    for kind in [kind for kind in measured if kind or len(measured) == 1]:
        unguided, change = before[f"alignment{kind}"], after[f"alignment_change{kind}"]
        half = half_width(after, f"alignment_change{kind}") or 0.0
        holds = at_most(-change, half, LOST * abs(unguided))
        numbers = [
            f"{unguided:.1f} → {after[f'alignment{kind}']:.1f}, {signed(change, 2)} ± {half:.2f}",
            _answered(before, after, kind),
            TOO_FEW if holds is None else "",
        ]
        found.append(claim(f"AMG keeps text alignment on {kinds[kind]} (within 5 % of unguided)", holds, *numbers))
    return found


def _answered(before: Mapping[str, Any], after: Mapping[str, Any], kind: str) -> str:
    """How many samples show what their caption asks for, where the world knows."""
    counts = [counted(row, f"aligned{kind}") for row in (before, after)]
    return "" if None in counts else f"answered {counts[0][0]}/{counts[0][1]} → {share(*counts[1])}"


def always_on(metrics: Mapping[str, Any]) -> list[Claim]:
    """Guiding every step of every chain ruins the pictures."""
    if not rows_of(metrics, "always"):
        return []
    text, found = "Always-on guidance ruins picture quality", ratio(metrics["always"])
    if found is None:
        return [claim(text, None, "no Fréchet distance against unguided pictures")]
    kept = at_most(*found, RUINED)
    others = {name: ratio(metrics[name]) for name in ("constant", *DYNAMIC, "full") if rows_of(metrics, name)}
    numbers = [
        f"Fréchet distance {found[0]:.2f} ± {found[1]:.2f} times that of unguided pictures (ruined: over {RUINED:g})"
    ]
    numbers += [f"{name} {value[0]:.2f} ± {value[1]:.2f}" for name, value in others.items() if value]
    return [claim(text, None if kept is None else not kept, *numbers, TOO_FEW if kept is None else "")]


def dynamic(metrics: Mapping[str, Any]) -> list[Claim]:
    """A λ_t that changes with t needs less than a constant one: that leaves more copies, or as many for more guiding.

    The rows have the same terms and constants; λ_t alone differs.
    """
    found = []
    for name in DYNAMIC:
        if not (rows := rows_of(metrics, "constant", name)):
            continue
        constant, changing = rows
        key = trusted(constant, changing)
        change = difference(copies(constant, key), copies(changing, key))
        steps = [row.get("steps_guided_share") for row in rows]
        counts = f"constant {share(*copies(constant, key))}, {name} {share(*copies(changing, key))}"
        numbers = [f"copies by the {BY[key]}: {counts}", points(change)]
        if None not in steps:
            numbers.append(f"steps guided: constant {percent(steps[0])} %, {name} {percent(steps[1])} %")
        _, low, high = change
        holds = True if low > 0 else False if high < 0 else None
        if holds is None and None not in steps:
            holds = steps[0] > steps[1]
            numbers.append("copies do not differ beyond chance, so the steps decide")
        text = f"A {name} λ_t needs less guiding than a constant λ, or leaves fewer copies"
        found.append(claim(text, holds, *numbers))
    return found
