"""What tells configurations apart, in as few words as on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One label per configuration: its keys that are not the same in all, as `guidance=full s0=3`.

    A component is told by its name; where that does not tell it apart from one of the same name, by its keys too.

    >>> labels([{"guidance": {"name": "full", "c3": 1}, "s0": 3}, {"guidance": {"name": "none"}, "s0": 3}])
    ['guidance=full', 'guidance=none']
    >>> labels([{"guidance": {"name": "full", "c3": 1}}, {"guidance": {"name": "full", "c3": 2}}])
    ['guidance.c3=1', 'guidance.c3=2']
    """
    return [" ".join(word for key in config for word in _words(key, config, configs)) for config in configs]


def _words(key: str, config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    value, others = config[key], [other.get(key) for other in configs]
    if all(other == value for other in others):
        return []
    if not isinstance(value, Mapping):
        return [f"{key}={value}"]
    peers = [other for other in others if isinstance(other, Mapping) and other.get("name") == value.get("name")]
    words = [] if len(peers) == len(others) else [f"{key}={value.get('name', value.get('_target_'))}"]
    return words + [f"{key}.{sub}" for sub in value for sub in _words(sub, value, peers)]
