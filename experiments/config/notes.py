"""What our own code warns of, as a line of the command line's output."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = (f"{ROOT / 'amg'}/", f"{ROOT / 'experiments'}/")
OF_LIBRARIES = (r".*`torch_dtype` is deprecated", r".*`torch\.jit\.load` is (deprecated|not supported)")
"""FutureWarnings of diffusers and torch around every message of a Stable Diffusion; no user can mend them."""


@contextmanager
def as_notes() -> Iterator[None]:
    """Prints `note: …` in the place of Python's two lines; warnings of libraries look as ever."""
    with warnings.catch_warnings():
        for message in OF_LIBRARIES:
            warnings.filterwarnings("ignore", message, FutureWarning)
        as_ever = warnings.showwarning

        def show(message: Any, category: type, filename: str, *rest: Any, **options: Any) -> None:
            if issubclass(category, UserWarning) and filename.startswith(OURS):
                print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                as_ever(message, category, filename, *rest, **options)

        warnings.showwarning = show
        yield
