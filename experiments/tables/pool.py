"""Metrics over several runs that differ in their seeds alone: means with an interval, counts added up.

A sample depends on its seed alone, so disjoint ranges of seeds are independent samples of one distribution. A share is
then counted over all of them, and Wilson's interval of the pooled count is the right one: Student's t over the groups'
shares would print 0 ± 0 where no copy was seen. What is no mean over samples (a percentile, a Fréchet distance) has no
such count: its interval is Student's t over the groups, which needs two groups at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amg.metrics.values import Mean, Share, number

TOTALS = ("n", "dropped")


def pool(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pools the metrics of all groups.

    Args:
        groups: what `experiments.run.evaluate.evaluate` returned for each range of seeds.
    Returns:
        The same keys. Shares and totals are sums, other numbers the `Mean` over groups; `groups` is how many there
        were. A key that no group knows is None; what is no number is the first group's.
    """
    return _pooled(groups) | {"groups": len(groups)}


def _pooled(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for group in groups for key in group)
    return {key: _value(key, [group[key] for group in groups if group.get(key) is not None]) for key in keys}


def _value(key: str, known: list[Any]) -> Any:
    if not known:
        return None
    if all(isinstance(value, Share) for value in known):
        return sum(known[1:], known[0])
    if key == "by_cause":
        causes = dict.fromkeys(cause for group in known for cause in group)
        return {cause: _pooled([group[cause] for group in known if cause in group]) for cause in causes}
    if key in TOTALS:
        return sum(known)
    if len(known) > 1 and all(isinstance(value, (float, Mean)) for value in known):
        return Mean.over([number(value) for value in known])
    return known[0]
