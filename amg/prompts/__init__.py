"""Prompts from a string, a list or a file, and two sets of captions of LAION that are known with Stable Diffusion 1.4.

`memorized_laion` (500, of which 112 are memorized verbatim and 388 as a template; the captions of Wen et al., 2024) and
`ordinary_laion` (500) are the files of NeMo (Hintersdorf et al., 2024), © 2024 ml-research@TUDarmstadt, MIT licence:
see LICENSE beside them. Captions and addresses are LAION's (CC BY 4.0).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

SETS = {"memorized_laion": "memorized_laion_prompts.csv", "ordinary_laion": "unmemorized_laion_prompts.csv"}
COLUMNS = ("prompt", "caption", "text")


def read_prompts(source: str | Path | Sequence[str]) -> list[str]:
    """Prompts, in order.

    Args:
        source: a list of prompts; the name of a set (`memorized_laion`, `ordinary_laion`); a `.txt` file with one a
            line, a `.jsonl` or `.csv` file (comma or semicolon) with a column `prompt`, `caption` or `text`; or one
            prompt.
    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for an empty prompt or a bad line, by its number.
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
    path = Path(source)
    if isinstance(source, Path) or path.suffix.lower() in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"prompts: there is no file {path}; sets by name: {', '.join(SETS)}")
        return _read(path)
    return read_prompts([source])


def _read(path: Path) -> list[str]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: prompts come as {', '.join(READERS)}")
    prompts = []
    for line, prompt in reader(path):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path}, line {line}: no prompt; expected some text")
        prompts.append(prompt.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _txt(path: Path):
    """Lines; blank ones at the end are none."""
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    yield from enumerate(lines, 1)


def _jsonl(path: Path):
    for line, text in _txt(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}: no JSON: {error.msg}") from None
        yield line, row if isinstance(row, str) else _column(row, path, line)


def _csv(path: Path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter=";" if header.count(";") > header.count(",") else ",")
        for row in rows:
            yield rows.line_num, _column(row, path, rows.line_num)


def _column(row: object, path: Path, line: int) -> str | None:
    columns = {str(name).lower(): value for name, value in row.items()} if isinstance(row, dict) else {}
    name = next((name for name in COLUMNS if name in columns), None)
    if name is None:
        raise ValueError(
            f"{path}, line {line}: no column {' or '.join(COLUMNS)}; it has {', '.join(columns) or 'none'}"
        )
    return columns[name]


READERS = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}
