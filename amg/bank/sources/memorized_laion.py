"""The training pictures of the 500 prompts that Stable Diffusion 1.4 is known to copy, as `task=download` left them.

Only their addresses are shipped (`amg.prompts`); addresses rot, so a bank says how many of the 500 it holds.
"""

from __future__ import annotations

from pathlib import Path

from amg.bank.bank import TrainingBank
from amg.bank.images import Item, load
from amg.bank.sources.manifest import Manifest

FOLDER = "data/memorized_laion"


def find(path: str | Path = FOLDER) -> None:
    """Says what to do where no picture was downloaded to `path`.

    Raises:
        FileNotFoundError: in one line, with the three ways on.
    """
    manifest = Manifest(path)
    if not any(manifest.there(entry) for entry in manifest.read()[1].values()):
        raise FileNotFoundError(
            f"data.path: no training pictures of the memorized prompts in {path}: fetch them by "
            "`python run.py task=download`, or bring pictures with captions by data=folder data.path=<folder>, "
            "or take a world that runs now, model=closed_form or model=lab_sd"
        )


def memorized_laion_bank(
    path: str | Path = FOLDER, size: int | None = 512, cache: str | Path | None = "auto"
) -> TrainingBank:
    """The downloaded pictures with their prompts as captions; `note` says how many of the list there are.

    Pictures that cannot be read are left out, with one warning that counts and lists them.

    Args:
        path: the folder of `task=download`.
        size: side of the squares; see `amg.bank.folder.read_folder`.
        cache: where descriptors are kept on disk, see `TrainingBank.from_folder`.
    Raises:
        FileNotFoundError: where there are none.
        ValueError: for a broken manifest, or where none of the pictures can be read.
    """
    find(path)
    manifest = Manifest(path)
    total, entries = manifest.read()
    # by name, which begins with the place in the list, and not in the order in which servers answered
    there = sorted((file, entry.prompt) for entry in entries.values() if (file := manifest.there(entry)) is not None)
    items = (Item(file.name, file, [prompt]) for file, prompt in there)
    images, captions = load(Path(path), items, len(there), size, "prompts")
    bank = TrainingBank.from_tensors(images, captions, source=str(path), cache=cache)
    bank.note = f"training pictures of {int(bank.multiplicity.sum())} of {total} memorized prompts"
    return bank
