"""Claims about copies: whether AMG clears them, which guidance is needed for what, and whether it fools its judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.tables.cells import counted, share
from experiments.tables.claim_numbers import (
    BY,
    TOO_FEW,
    Claim,
    Metrics,
    claim,
    copies,
    difference,
    falls,
    points,
    rows_of,
    told,
    trusted,
)

PAIRS = (("none", "full"), ("unconditional_none", "unconditional_full"), ("lab_none", "lab_full"))
CAUSES = {
    "spe": ("G_spe", "specific prompt"),
    "dup": ("G_dup", "duplicated caption"),
    "sim": ("G_sim", "duplicated picture"),
}
MARGIN = 0.10
"""How much more than its false alarms the judge may count, at the upper end of the interval."""


def clears(metrics: Mapping[str, Any]) -> list[Claim]:
    """AMG leaves no copy by the guide's count, nor by the truth; where that is not known, by the judge."""
    found = []
    for none, full in PAIRS:
        if rows := rows_of(metrics, none, full):
            before, after = rows
            counts = {key: copies(after, key) for key in BY if counted(after, key) and counted(before, key)}
            some = copies(before, trusted(before, after))[0]  # what the most trusted count found to remove
            holds = all(counts[key][0] == 0 for key in counts if key != "judge_copies") if some else None
            if holds and "truth_copies" not in counts and counts.get("judge_copies", (0,))[0]:
                holds = _no_more_than_false_alarms(before, after)  # the guide's own 0 is no proof
            numbers = [f"by the {BY[key]} {told(copies(before, key), count)}" for key, count in counts.items()]
            found.append(claim(f"AMG clears all copies{_where(none, before)}", holds, *numbers, *_nothing(some)))
    return found


def clears_strictly(metrics: Mapping[str, Any]) -> list[Claim]:
    """Strong leaves none beyond the stricter threshold either."""
    if not (rows := rows_of(metrics, "none", "strong")):
        return []
    before, after = (copies(row, "strict") for row in rows)
    holds = after[0] == 0 if before[0] else None
    text = "AMG (Strong) clears the stricter threshold too"
    return [claim(text, holds, f"by the guide {told(before, after)}", *_nothing(before[0]))]


def needs_sim(metrics: Mapping[str, Any]) -> list[Claim]:
    """Without G_sim copies remain, more than with it."""
    name = next((name for name in ("spe_dup", "spe", "dup") if rows_of(metrics, "none", name)), None)
    if name is None:
        return []
    before, without = metrics["none"], metrics[name]
    full = metrics["full"] if rows_of(metrics, "full") else None
    key = trusted(before, without, *([full] if full else []))
    left, words = copies(without, key), {"spe_dup": "G_spe + G_dup", "spe": "G_spe alone", "dup": "G_dup alone"}
    numbers = [f"by the {BY[key]} {told(copies(before, key), left)} with {words[name]}"]
    numbers += [f"{share(*copies(full, key))} with all three"] if full else []
    some = copies(before, key)[0]
    return [claim("Without G_sim some copies remain", left[0] > 0 if some else None, *numbers, *_nothing(some))]


def answers(metrics: Mapping[str, Any]) -> list[Claim]:
    """Each guidance alone removes copies of its own cause; what it does to the others is told."""
    found = []
    for name, (term, cause) in CAUSES.items():
        if not (rows := rows_of(metrics, "none", name)):
            continue
        key = next((key for key in BY if all((row.get(f"{key}_by_cause") or {}).get(cause) for row in rows)), None)
        if key is None:
            continue
        before, after = (row[f"{key}_by_cause"] for row in rows)
        changes = {one: difference(_count(after[one]), _count(before[one])) for one in before if one in after}
        others = {one: change for one, change in changes.items() if one not in (cause, "ordinary")}
        some = before[cause]["count"]
        holds = falls(changes[cause]) if some else None
        found.append(
            claim(
                f"{term} answers its cause: {cause}",
                holds,
                f"by the {BY[key]} {told(_count(before[cause]), _count(after[cause]))}",
                points(changes[cause]),
                *(f"{one} {points(change)}" for one, change in others.items()),
                *(_nothing(some) or [TOO_FEW] * (holds is None)),
            )
        )
    return found


def judged(metrics: Mapping[str, Any]) -> list[Claim]:
    """A judge that did not guide counts on AMG's pictures no more than its false alarms on unguided, uncopied ones."""
    found = []
    for none, full in PAIRS:
        rows = rows_of(metrics, none, full)
        if not rows or not counted(rows[1], "judge_copies") or not counted(rows[0], "judge_novel"):
            continue
        before, after = rows
        change = difference(copies(after, "judge_copies"), copies(before, "judge_novel"))
        some = copies(before, "copies")[0]
        holds = _no_more_than_false_alarms(before, after) if some else None
        counts = [key for key in ("copies", "judge_copies", "planted_copies", "truth_copies") if counted(after, key)]
        found.append(
            claim(
                f"AMG undoes copies{_where(none, before)} and does not only fool the descriptor that guides it",
                holds,
                *(f"by the {BY[key]} {told(copies(before, key), copies(after, key))}" for key in counts),
                f"the judge's false alarms on unguided pictures that are no copies "
                f"{share(*copies(before, 'judge_novel'))}",
                f"beyond them {points(change)}",
                *(_nothing(some) or [TOO_FEW] * (holds is None)),
            )
        )
    return found


def _no_more_than_false_alarms(before: Metrics, after: Metrics) -> bool | None:
    """Whether the judge counts no more on guided pictures than on unguided ones that are no copies."""
    if not counted(before, "judge_novel"):
        return None
    _, low, high = difference(copies(after, "judge_copies"), copies(before, "judge_novel"))
    return False if low > 0 else True if high <= MARGIN else None


def _where(none: str, row: Metrics) -> str:
    if none != "none":
        return {"unconditional_none": " without captions", "lab_none": " on the lab's network"}[none]
    return " under captions" if row.get("copies_by_cause") or row.get("alignment") is not None else ""


def _nothing(some: int | bool) -> list[str]:
    return [] if some else ["no copy without guidance, so nothing to remove"]


def _count(found: Mapping[str, Any]) -> tuple[int, int]:
    return found["count"], found["n"]
