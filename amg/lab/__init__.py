"""The lab: pictures, some of them planted to be memorized, and small networks trained on them.

    from amg.lab import descriptor, emoji, lab_pictures, lab_sd, scorer

Names are loaded on first use; weights are checked against their SHA-256.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "descriptor": "amg.lab.descriptors",
    "emoji": "amg.lab.pictures",
    "lab_pictures": "amg.lab.pictures",
    "lab_sd": "amg.lab.diffusion",
    "scorer": "amg.lab.scorers",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
