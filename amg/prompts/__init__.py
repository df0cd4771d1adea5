"""Prompts from a string, a list or a file, and two sets of captions of LAION that are known with Stable Diffusion 1.4.

`memorized_laion` (500, of which 112 are memorized verbatim and 388 as a template; the captions of Wen et al., 2024) and
`ordinary_laion` (500) are the files of NeMo (Hintersdorf et al., 2024), © 2024 ml-research@TUDarmstadt, MIT licence:
see LICENSE beside them. Captions and addresses are LAION's (CC BY 4.0).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns, csv_rows, json_lines, lines

SETS = {"memorized_laion": "memorized_laion_prompts.csv", "ordinary_laion": "unmemorized_laion_prompts.csv"}
CAUSES = {"VM": "verbatim", "TM": "template"}
"""Cause of memorization of a prompt of `memorized_laion`, by the column `type` of its file."""


def read_prompts(source: str | Path | Sequence[str]) -> list[str]:
    """Prompts, in order.

    Args:
        source: a list of prompts; the name of a set (`memorized_laion`, `ordinary_laion`); a `.txt` file with one a
            line, a `.jsonl` or `.csv` file (comma, semicolon or tab) with one of CAPTION_COLUMNS, of which a list is
            several prompts; or one prompt.
    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for an empty prompt or a bad line, by its number; for another encoding than UTF-8.
    """
    if not isinstance(source, (str, Path)):
        prompts = list(source)
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"prompt {i} must be some text, got {prompt!r}")
        if not prompts:
            raise ValueError("the list of prompts is empty")
        return prompts
    if str(source) in SETS:
        return _read(Path(__file__).with_name(SETS[str(source)]))
    path = Path(os.path.expanduser(source))
    if isinstance(source, Path) or path.suffix.lower() in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"prompts: there is no file {path}; sets by name: {', '.join(SETS)}")
        return _read(path)
    return read_prompts([source])


def read_addresses(source: str | Path) -> list[tuple[str, str]]:
    """Prompts and the addresses of their training images, in order.

    Args:
        source: the name of a set, or a `.jsonl` or `.csv` file with a column `url` beside that of the prompt.
    Raises:
        FileNotFoundError, ValueError: as `read_prompts`, also for a line without an address.
    """
    path = Path(__file__).with_name(SETS[str(source)]) if str(source) in SETS else Path(os.path.expanduser(source))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; sets by name: {', '.join(SETS)}")
    return [(prompt, _url(row, path, line)) for line, row in _rows(path) for prompt in _prompts(row, path, line)]


def cause(prompt: str) -> str:
    """Returns how Stable Diffusion 1.4 is known to memorize a prompt: one of CAUSES, "ordinary", or "" if unknown."""
    return _causes().get(prompt.strip(), "")


@cache
def _causes() -> dict[str, str]:
    sets = {name: Path(__file__).with_name(file) for name, file in SETS.items()}
    found = dict.fromkeys(_read(sets["ordinary_laion"]), "ordinary")
    for line, row in _rows(path := sets["memorized_laion"]):
        found |= dict.fromkeys(_prompts(row, path, line), CAUSES[row["type"]])
    return found


def _read(path: Path) -> list[str]:
    prompts = [prompt for line, row in _rows(path) for prompt in _prompts(row, path, line)]
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line: a text, or a dict of columns."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: prompts come as {', '.join(READERS)}")
    return reader(path)


def _prompts(row: object, path: Path, line: int) -> list[str]:
    cells = {"text": row} if isinstance(row, str) else columns(row)
    prompts = captions_of(cells, f"{path}, line {line}")
    if prompts is None:
        raise _no_column(cells, CAPTION_COLUMNS, path, line)
    if not prompts:
        raise ValueError(f"{path}, line {line}: no prompt; expected some text")
    return prompts


def _url(row: object, path: Path, line: int) -> str:
    cells = columns(row)
    if "url" not in cells:
        raise _no_column(cells, ("url",), path, line)
    return str(cells["url"] or "").strip()


def _no_column(cells: dict[str, Any], names: tuple[str, ...], path: Path, line: int) -> ValueError:
    return ValueError(f"{path}, line {line}: no column {' or '.join(names)}; it has {', '.join(cells) or 'none'}")


READERS = {".txt": lines, ".jsonl": json_lines, ".csv": csv_rows}
