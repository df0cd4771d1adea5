"""Messages to the user, one line each: what is wrong, and what our own code warns of."""

from __future__ import annotations

import difflib
import errno
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

SEVERAL = ("detector",)
"""Groups of which a run may choose several; each choice is a component, by its name."""
WANTED = {
    "data.path": ", a folder of training images with captions (data=parquet: a Parquet file of them); "
    "model=lab_sd runs now",
    "model.source": ", a folder in diffusers' format or a name of the hub; model=lab_sd runs now",
}
"""Text of the error for a key that a yaml leaves to the user."""
GONE = {"row": "rows of a table are guidances: guidance=none,full; row=always … calibrated is guidance=sim_always …"}
"""Keys of earlier versions, with what took their place."""
PLUGINS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}  # launcher: our extra


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
"""Error numbers of a disk that is full or failing, and of a folder that cannot be written to."""


def of_disk(error: Exception) -> str | None:
    """A line for what a disk refused to write; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in FULL + CLOSED:
        return None
    place = error.filename or Path.cwd()  # a write to a full disk names no file
    mend = "what is written stays, and the same command continues" if error.errno in FULL else "choose another place"
    return f"{place}: {error.strerror}; {mend}"


def did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(sorted(known)) or 'none'}"


def explain(error: Exception, folders: list[Path]) -> str:
    """Hydra's complaint in one line.

    Args:
        folders: `conf/` and the user's own, where choices are looked for.
    """
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([\w./-]+)/([\w.-]+)'", text):
        group, option = match.groups()
        if option in PLUGINS:
            return f"hydra/launcher={option}: needs a plugin: pip install -e '.[{PLUGINS[option]}]'"
        options = sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; choices: {', '.join(options)}"
        return f"{group}={option}: no such choice{hint}"
    if match := re.search(r"Could not override '([\w.@-]+)'|Key '([\w-]+)' is not in struct", text):
        key = match[1] or match[2]
        if key in SEVERAL:
            return f"{key}: only task=detect takes it"
        if key in GONE:
            return f"{key}: no longer a key; {GONE[key]}"
        return f"{key}: unknown key{did_you_mean(key, top_level_keys(folders))}"
    return " ".join(text.split())


def top_level_keys(folders: list[Path]) -> list[str]:
    groups = [group.name for folder in folders for group in folder.iterdir() if group.is_dir()]
    plain = [key for key in OmegaConf.load(folders[0] / "config.yaml") if key not in ("defaults", "hydra")]
    return sorted({*groups, *plain})


def unresolved(error: OmegaConfBaseException) -> str:
    return " ".join(str(error).split())


def needed(key: str) -> str:
    """Asks for a value that only the user can give."""
    return f"{key}: needs a value{WANTED.get(key, '')}"


def told(error: dict[str, Any], keys: list[str]) -> str:
    key = ".".join(str(part) for part in error["loc"] if part not in ("str", "list[str]"))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if key in GONE:
            return f"{key}: no longer a key; {GONE[key]}"
        return f"{key}: unknown key{did_you_mean(key, keys)}"
    if not key:
        return message
    return f"{key}={error['input']!r}: {message[0].lower()}{message[1:]}"


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
