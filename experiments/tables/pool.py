"""Metrics over several runs that differ in their seeds alone: means with an interval, counts added up.

A sample depends on its seed alone, so disjoint ranges of seeds are independent samples of one distribution. A share is
then counted over all of them, and Wilson's interval of the pooled count is the right one: Student's t over the groups'
shares would print 0 ± 0 where no copy was seen. What is no mean over samples (a percentile, a Fréchet distance) has no
such count: its interval is Student's t over the groups, which needs two groups at least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from amg.metrics import share

SHARE_PARTS = ("share", "low", "high")
TOTALS = ("n", "dropped")


def pool(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of all groups together.

    Args:
        groups: what `experiments.run.evaluate.evaluate` returned for each range of seeds.
    Returns:
        The same keys. Counts are sums with their share and Wilson's interval, other numbers means; the half-width of a
        mean's 95 % interval (Student's t) is `<key>_ci`. `groups` is how many there were. A key that no group knows is
        None; what is no number is the first group's.
    """
    counts = {key for one in groups for key in one if f"{key}_share" in one}
    derived = {f"{key}_{part}" for key in counts for part in (*SHARE_PARTS, "n")}
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in groups for key in one):
        known = [one[key] for one in groups if one.get(key) is not None]
        if key in derived:
            continue
        if key in counts:
            result |= _share(key, groups)
        elif key.endswith("by_cause"):
            result[key] = _by_cause(known)
        elif key in TOTALS:
            result[key] = sum(known)
        elif known and all(isinstance(value, float) for value in known):
            result |= _mean(key, known)
        else:
            result[key] = known[0] if known else None
    return result | {"groups": len(groups)}


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean, t · s / √k with k − 1 degrees of freedom; None for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _mean(key: str, values: Sequence[float]) -> dict[str, Any]:
    half = half_width(values)
    return {key: mean(values)} | ({} if half is None else {f"{key}_ci": half})


def _share(key: str, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = any(f"{key}_n" in one for one in groups)  # a share that is not of all samples says of how many
    known = [one for one in groups if one.get(key) is not None]
    if not known:
        return dict.fromkeys([key, *(f"{key}_{part}" for part in SHARE_PARTS), *([f"{key}_n"] if own else [])])
    found = share(sum(one[key] for one in known), sum(one[f"{key}_n" if own else "n"] for one in known))
    return {key: found["count"]} | {f"{key}_{part}": found[part] for part in (*SHARE_PARTS, *(["n"] if own else []))}


def _by_cause(several: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Counts within each cause, added up; a share's interval is made anew."""
    if not several:
        return None
    result: dict[str, Any] = {}
    for cause in dict.fromkeys(cause for one in several for cause in one):
        found = [one[cause] for one in several if cause in one]
        counts = dict.fromkeys(key for one in found for key, value in one.items() if isinstance(value, int))
        sums = {key: sum(one.get(key, 0) for one in found) for key in counts}
        result[cause] = share(sums["count"], sums["n"]) if "count" in sums else sums
    return result
