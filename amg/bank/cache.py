"""Cache of answers that took long."""

import os
from pathlib import Path


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder given, else $AMG_CACHE, else ~/.cache/amg.

    Raises:
        ValueError: where none is given and nobody's home is known, as of a user whom a container does not know.
    """
    folder = Path(os.path.expanduser(cache or os.environ.get("AMG_CACHE") or "~/.cache/amg"))
    if folder.parts[0] == "~":
        raise ValueError("data.cache: there is no home folder: set AMG_CACHE to a folder, or data.cache=null")
    return folder
