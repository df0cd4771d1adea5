"""Finds the shipped weights of the lab and checks that they are the ones that were shipped."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("weights")
SUMS = "SHA256SUMS"


@cache
def weights(name: str, folder: Path = FOLDER) -> Path:
    """The folder of one shipped network, every file of it checked against its SHA-256.

    Args:
        name: a folder under `amg/lab/weights`, such as `lab_sd` or `descriptor_guide`.
    Raises:
        FileNotFoundError: if there is no such network or a file of it is missing.
        ValueError: if a file's content changed.
    """
    path = folder / name
    if not (path / SUMS).is_file():
        shipped = ", ".join(sorted(sums.parent.name for sums in folder.glob(f"*/{SUMS}"))) or "none"
        raise FileNotFoundError(
            f"no lab weights {name!r} in {folder} (shipped: {shipped}): train them by experiments/recipes"
        )
    for line in (path / SUMS).read_text(encoding="utf8").splitlines():
        expected, file = line.split("  ", 1)
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / file} is missing: restore it by `git checkout -- {path}`")
        if digest(path / file) != expected:
            raise ValueError(
                f"{path / file} is not the file that was shipped (SHA-256 differs): restore it by `git checkout`, "
                f"or write new sums by experiments.recipes.ship_lab after training"
            )
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(path: Path) -> None:
    """Writes the sums of a network's files as `sha256sum` would; its model card may still be edited."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in (SUMS, "MODEL_CARD.md"))
    lines = [f"{digest(f)}  {f.relative_to(path).as_posix()}\n" for f in files]
    (path / SUMS).write_text("".join(lines), encoding="utf8")
