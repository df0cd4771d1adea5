"""Clocks of the benchmarks."""

import statistics
from collections.abc import Callable


def seconds(actions: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median time of each action; they take turns, so that a busy machine is unjust to none."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            start = clock()
            action()
            times[name].append(clock() - start)
    return {name: statistics.median(some[1:]) for name, some in times.items()}  # the first warms up
