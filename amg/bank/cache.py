"""Where answers that took long are kept."""

import os
from pathlib import Path


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder given, else $AMG_CACHE, else ~/.cache/amg."""
    return Path(cache or os.environ.get("AMG_CACHE", "~/.cache/amg")).expanduser()
