"""Cache of answers that took long."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amg.tensors import replacing


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder given, else $AMG_CACHE, else ~/.cache/amg.

    Raises:
        ValueError: where none is given and nobody's home is known, as of a user whom a container does not know.
    """
    folder = Path(os.path.expanduser(cache or os.environ.get("AMG_CACHE") or "~/.cache/amg"))
    if folder.parts[0] == "~":
        raise ValueError("data.cache: there is no home folder: set AMG_CACHE to a folder, or data.cache=null")
    return folder


def write_array(file: Path, parts: Sequence[np.ndarray]) -> None:
    """Writes arrays one after the other as one `.npy` file, whole or not at all.

    `numpy.save` overlooks a disk that is full, and writing to a memory map on one kills the process.

    Args:
        parts: alike in dtype and in all but the first axis; at least one.
    """
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    with replacing(file) as place, place.open("wb") as out:
        header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for part in parts:
            out.write(part.tobytes())
