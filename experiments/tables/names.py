"""Names of rows, in as few words as on the command line; no row counts a sample twice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from experiments.config.schema import ConfigError


def keys(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The row of each job: what is not the same in all jobs, seeds aside; a guidance alone by its name.

    >>> jobs = [["n_samples=8", "guidance=none", "seed=0"], ["n_samples=8", "guidance=full", "s0=3"]]
    >>> keys([{"overrides": job, "guidance": None} for job in jobs])
    ['none', 'guidance=full s0=3']
    """
    common = set.intersection(*(set(result["overrides"]) for result in results))
    found = []
    for result in results:
        own = [word.lstrip("+") for word in result["overrides"] if word not in common]
        own = [word for word in own if not word.startswith("seed=")]
        found.append(_joined(own) or result["guidance"] or "all")
    return found


def guidance_of(key: str) -> tuple[str, str]:
    """The guidance of a row, and what else sets it apart.

    >>> guidance_of("s0=3 guidance=full"), guidance_of("full")
    (('full', 's0=3'), ('full', ''))
    """
    match = re.search(r"(?:^| )guidance=(\S+)", key)
    return (match[1], key.replace(match[0], "", 1).strip()) if match else (key, "")


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per configuration: its keys that are not the same in all, as `guidance=full s0=3`.

    A component is told by its name; where that does not tell it apart from one of the same name, by its keys too.

    >>> labels([{"guidance": {"name": "full", "c3": 1}, "s0": 3}, {"guidance": {"name": "none"}, "s0": 3}])
    ['guidance=full', 'guidance=none']
    >>> labels([{"guidance": {"name": "full", "c3": 1}}, {"guidance": {"name": "full", "c3": 2}}])
    ['guidance.c3=1', 'guidance.c3=2']
    """
    return [_joined([word for key in config for word in _words(key, config, configs)]) for config in configs]


def _joined(words: list[str]) -> str:
    return " ".join(words).removeprefix("guidance=") if len(words) == 1 else " ".join(words)


def _words(key: str, config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    value, others = config[key], [other.get(key) for other in configs]
    if all(other == value for other in others):
        return []
    if not isinstance(value, Mapping):
        return [f"{key}={value}"]
    peers = [other for other in others if isinstance(other, Mapping) and other.get("name") == value.get("name")]
    words = [] if len(peers) == len(others) else [f"{key}={value.get('name', value.get('_target_'))}"]
    return words + [f"{key}.{sub}" for sub in value for sub in _words(sub, value, peers)]


def refuse_overlap(runs: Sequence[tuple[str, Any, range]]) -> None:
    """Refuses two runs of one setting that share a seed: a sample depends on its seed alone and would count twice.

    Args:
        runs: (name, setting, seeds) each.
    """
    for (a, setting, first), (b, other, second) in combinations(runs, 2):
        both = range(max(first.start, second.start), min(first.stop, second.stop))
        if setting == other and len(both):
            shared = f"{a} and {b} share the seeds {both.start} to {both.stop - 1}, whose samples would count twice"
            raise ConfigError([f"{shared}: keep seeds n_samples apart, or leave one run out"])
