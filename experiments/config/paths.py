"""Keys that hold a path, or may hold one."""

from __future__ import annotations

import os
from typing import Any

PATHS = (
    *("addresses", "cache", "default_root_dir", "ordinary", "output_dir", "path", "prompts", "reference", "root"),
    *("runs", "scorer", "source"),
)
"""Their last parts, wherever they stand."""


def at_home(node: Any, key: str = "") -> Any:
    """A configuration whose paths have the home folder in the place of a leading ~, which no shell puts after a =."""
    if isinstance(node, dict):
        return {name: at_home(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [at_home(value, key) for value in node]
    return os.path.expanduser(node) if key in PATHS and isinstance(node, str) else node
