"""`task=bank` embeds the training images once, `task=dedupe` finds their near-copies, which nL2 must not refer to."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from amg.bank import TrainingBank
from amg.bank.dedupe import reference
from amg.bank.images import BankNote
from amg.bank.vectors import StoredVectors
from experiments.config.build import bank_of, component, device, told
from experiments.config.schema import RunConfig
from experiments.run.predict import Bar, predict, progress
from experiments.tasks.task import Task


class Bank(Task):
    """Embeds the images of `data` by the descriptors of `similarity` and `judge`, shards that are missing only.

    Returns:
        A folder with vectors, the guide's first; None where none are kept on disk.
    """

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path | None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", BankNote)
            bank = bank_of(config)
        lines = _counts(config, bank)
        for warning in caught:
            if isinstance(note := warning.message, BankNote):
                if note.unread:
                    lines += [
                        f"left out, {len(note.unread):,} that cannot be read:",
                        *(f"  {name}" for name in note.unread),
                    ]
                lines += [note.without_caption] if note.bare else []
            else:
                warnings.warn(warning.message, stacklevel=2)
        work = []
        for key in ("similarity", "judge"):
            name = f"{key}={getattr(config, key).get('name')}"
            with told(key):
                similarity = component(getattr(config, key), bank=bank, device=device(config.trainer))
                # what is missing is listed before anything is written: all processes must share the same list
                found = [(one, bank.stored(one)) for one in _descriptors(similarity)]
                work += [(name, one, stored, stored.missing() if stored else []) for one, stored in found]
            if not found:
                lines.append(f"{name}: has no descriptor, nothing to embed")
        for name, descriptor, stored, missing in work:
            lines.append(f"{name}: {embed(config, name, bank, descriptor, stored, missing) if stored else _kept(bank)}")
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print("\n".join(lines))
        return next((stored.folder for _, _, stored, _ in work if stored), None)


def embed(
    run: RunConfig, name: str, bank: TrainingBank, descriptor: Any, stored: StoredVectors, missing: list[int]
) -> str:
    """Computes the shards that are missing; says what was done."""
    count = sum(stored.rows(shard).stop - stored.rows(shard).start for shard in missing)
    if missing:
        module = Embed(bank, descriptor, stored, device(run.trainer))
        with told("data"):
            predict(run.trainer, module, missing, Bar(name, count, "pictures"), Writer(stored), batch_size=None)
    dimension = stored.manifest()["dimension"]
    return f"{len(bank):,} vectors of {dimension} numbers in {stored.folder}; {count:,} computed now"


class Embed(L.LightningModule):
    """Describes the images of one shard."""

    def __init__(self, bank: TrainingBank, descriptor: Any, stored: StoredVectors, place: str):
        super().__init__()
        self.bank, self.descriptor, self.stored, self.place = bank, descriptor, stored, torch.device(place)

    def predict_step(self, shard: int, batch_idx: int) -> torch.Tensor:
        return self.bank.describe(self.descriptor, self.stored.rows(int(shard)), self.place, torch.float32)

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier()  # what is told next is the work of all processes


class Writer(BasePredictionWriter):
    """Writes each shard as it comes."""

    def __init__(self, stored: StoredVectors):
        super().__init__("batch")
        self.stored = stored

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.stored.write(int(batch), prediction)


def _counts(run: RunConfig, bank: TrainingBank) -> list[str]:
    total, captioned = int(bank.multiplicity.sum()), sum(map(bool, bank.captions))
    return [
        f"data={run.data.get('name')}: {total:,} pictures of {bank.source}, {len(bank):,} distinct "
        f"({total - len(bank):,} repeats merged), {captioned:,} of these with a caption"
    ]


def _descriptors(similarity: Any) -> list[Any]:
    """Returns the identity by which a similarity asks the bank for vectors."""
    stages = getattr(similarity, "stages", (similarity,))
    return [stage.training for stage in stages if hasattr(stage, "training")]


def _kept(bank: TrainingBank) -> str:
    """Returns the reason that nothing is kept on disk."""
    if bank.cache is None:
        return "this data is embedded in memory at each start; data.cache= names a folder where it takes one"
    return "fitted to the bank and embedded in memory at each start, nothing to keep"


@dataclass(frozen=True)
class Dedupe(Task):
    """Prints how many images go and how many stay; returns the file that keeps the answer.

    Runs with `data.deduplicate=<threshold>` read it and search nothing.

    Args:
        threshold, k, scale: see `amg.bank.dedupe.dedupe`.
    """

    threshold: float = 1.0
    k: int = 50
    scale: float = 0.5

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        bank = bank_of(config, deduplicate=None)
        start = time.perf_counter()
        with progress() as shown, told("task"):
            bar = shown.add_task("pictures searched", total=len(bank), note="")
            kept, file = reference(
                bank, self.threshold, self.k, self.scale, on_block=lambda n: shown.update(bar, advance=n)
            )
            shown.update(bar, completed=len(bank))
        print(
            f"data={config.data.get('name')}: {int(bank.multiplicity.sum()):,} pictures, {len(bank):,} distinct, "
            f"{len(bank) - len(kept):,} near-copies left out "
            f"(nL2 below {self.threshold:g}, k={self.k}, α={self.scale:g}), "
            f"{len(kept):,} to refer to; {time.perf_counter() - start:.1f} s\nkept in {file}"
        )
        return file
