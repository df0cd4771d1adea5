"""`task=bank` reads and embeds training images once; `task=dedupe` finds near-copies, which nL2 must not refer to."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import Dataset

from amg.bank import TrainingBank
from amg.bank.dedupe import reference
from amg.bank.images import BankNote
from amg.bank.vectors import StoredVectors
from amg.similarity.base import by_descriptor
from experiments.config.bind import locate
from experiments.config.build import bank_of, component, device, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.run.predict import Bar, predict, progress
from experiments.tasks.task import Task

STEPS = ("rows", "vectors", "index", "check")
SOURCE = ("image_column", "caption_column", "split", "revision", "kind", "size")


@dataclass(frozen=True)
class Bank(Task):
    """Makes what is missing of a bank and says what it found; returns its folder, None where nothing is kept on disk.

    Args:
        out: the bank's folder; None takes the one below the cache that `data` has, or that `data=bank` names.
        step: one of `rows` (reads the source), `vectors` (descriptors of `similarity` and `judge`), `index` (codes and
            their recall, where one is used), `check` (reads every image again); None does the first three.
        part, parts: embeds every `parts`-th block, from number `part` on: jobs of an array share nothing else.
        engine: `lightning`, or `ray` (Ray Data; needs the extra `ray`, and a bank with a folder).
        address: of the Ray cluster; None starts one here.
    """

    out: str | None = None
    step: str | None = None
    part: int = 0
    parts: int = 1
    engine: str = "lightning"
    address: str | None = None

    builds = True

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path | None:
        self._check()
        steps = STEPS[:3] if self.step is None else (self.step,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BankNote)  # told in full here
            bank = self._bank(config)
        lines = counted(config, bank)
        found: list[tuple[str, Any, Any, StoredVectors | None, list[int]]] = []
        if {"vectors", "index"} & set(steps):
            for key in ("similarity", "judge"):
                name = f"{key}={getattr(config, key).get('name')}"
                if getattr(locate(getattr(config, key)["_target_"]), "compares_pixels", False):
                    lines.append(f"{name}: compares pixels, nothing to embed")
                    continue
                with told(key):
                    similarity = component(getattr(config, key), bank=bank, device=device(config.trainer))
                    # what is missing is listed before anything is written: all processes must share the same list
                    some = [(one, bank.stored(one.training)) for one in by_descriptor(similarity)]
                    found += [(name, key, one, stored, stored.missing() if stored else []) for one, stored in some]
                if not some:
                    lines.append(f"{name}: has no descriptor, nothing to embed")
        for number, (name, key, one, stored, missing) in enumerate(found):
            if stored is None:
                lines.append(f"{name}: {_kept(bank)}")
                continue
            mine = [block for block in missing if block % self.parts == self.part]
            if "vectors" in steps:
                nth = [other[1] for other in found[:number]].count(key)
                lines.append(f"{name}: {self._embed(config, name, key, nth, bank, one, stored, mine)}")
            left = len(stored.missing())
            if "index" in steps and left:
                lines.append(f"{name}: no index yet, {left:,} blocks are missing")
            elif "index" in steps and _first():
                with told("data"):
                    lines += [f"{name}: {line}" for line in indexed(one)]
        if "check" in steps and _first():
            lines += checked(bank)
        if _first():
            print("\n".join(lines))
        return bank.folder or next((stored.folder for _, _, _, stored, _ in found if stored), None)

    def _check(self) -> None:
        lines = []
        if self.step is not None and self.step not in STEPS:
            lines.append(f"task.step={self.step}: choose {', '.join(STEPS)}, or null for the first three")
        if not 0 <= self.part < self.parts:
            lines.append(f"task.part={self.part}: must lie in 0 … task.parts − 1 = {self.parts - 1}")
        if self.engine not in ("lightning", "ray"):
            lines.append(f"task.engine={self.engine}: choose lightning or ray")
        if lines:
            raise ConfigError(lines)

    def _bank(self, config: RunConfig) -> TrainingBank:
        if self.out is None:
            return bank_of(config)
        if "path" not in config.data:
            raise ConfigError(
                [f"task.out: data={config.data.get('name')} has no path to read: data=folder data.path=…"]
            )
        options = {key: config.data[key] for key in SOURCE if key in config.data}
        with progress(disable=not _first()) as shown, told("data"):
            bar = shown.add_task("images read", total=None, note="")
            return TrainingBank.build(
                self.out, config.data["path"], **options, on_rows=lambda n: shown.update(bar, advance=n)
            )

    def _embed(
        self,
        config: RunConfig,
        name: str,
        key: str,
        nth: int,
        bank: TrainingBank,
        one: Any,
        stored: StoredVectors,
        mine: list[int],
    ) -> str:
        """Computes the blocks that are missing; says what was done."""
        count = sum(stored.rows(block).stop - stored.rows(block).start for block in mine)
        if mine and self.engine == "ray":
            from experiments.run.on_ray import embed

            with told("task"):
                embed(config, key, nth, bank, stored, mine, self.address, Bar(name, count, "images"))
        elif mine:
            module, blocks = Embed(bank, one.training, device(config.trainer)), Decoded(bank, stored, mine)
            with told("data"):
                predict(
                    config.trainer,
                    module,
                    blocks,
                    Bar(name, count, "images"),
                    Writer(stored),
                    collate_fn=lambda x: x[0],
                )
        if not stored.folder.is_dir():
            return "nothing to embed in this part"
        dimension = stored.manifest()["dimension"]
        return f"{len(bank):,} vectors of {dimension} numbers in {stored.folder}; {count:,} computed now"


class Decoded(Dataset):
    """Decoded images of blocks, as (number of the block, its first entry, images; None for a broken one)."""

    def __init__(self, bank: TrainingBank, stored: StoredVectors, blocks: Sequence[int]):
        self.bank, self.stored, self.blocks = bank, stored, blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[int, int, list[torch.Tensor | None]]:
        rows = self.stored.rows(self.blocks[index])
        return self.blocks[index], rows.start, list(self.bank.decoded(range(rows.start, rows.stop)))


class Embed(L.LightningModule):
    """Describes the images of one block."""

    def __init__(self, bank: TrainingBank, descriptor: Any, place: str):
        super().__init__()
        self.bank, self.descriptor, self.place = bank, descriptor, torch.device(place)

    def predict_step(self, block: tuple[int, int, list[torch.Tensor | None]], batch_idx: int) -> torch.Tensor:
        _, first, images = block
        return self.bank.describe_images(self.descriptor, first, images, self.place, torch.float32)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # of several sizes: each batch of one size goes when it is described

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier()  # what is told next is the work of all processes


class Writer(BasePredictionWriter):
    """Writes each block as it comes."""

    def __init__(self, stored: StoredVectors):
        super().__init__("batch")
        self.stored = stored

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.stored.write(batch[0], prediction)


def counted(run: RunConfig, bank: TrainingBank) -> list[str]:
    """Returns what was found in the data."""
    counts = bank.counts
    read = counts["images"] - counts["broken"]
    lines = [
        f"data={run.data.get('name')}: {counts['images']:,} images of {bank.source}, {counts['entries']:,} distinct, "
        f"{counts['repeats']:,} repeats, {read - counts['without caption']:,} with a caption"
    ]
    if counts["broken"]:
        lines += [f"left out, {counts['broken']:,} that cannot be read:", *(f"  {name}" for name in bank.rows.unread())]
    if counts["without caption"]:
        looked = bank.rows.info.get("captions_in", "")
        lines.append(f"{counts['without caption']:,} of {read:,} images have no caption (captions are {looked})")
    if counts["not downloaded"]:
        why = ", ".join(f"{n:,} {reason}" for reason, n in list(bank.rows.info["missed"].items())[:5])
        lines.append(f"not downloaded: {counts['not downloaded']:,} ({why})")
    return lines


def indexed(similarity: Any) -> Iterator[str]:
    """Makes the index that a run will use; says its recall."""
    index = similarity.index_of(torch.zeros(1, device="cpu"))
    if recall := getattr(index, "recall", None):
        found = ", ".join(f"{value:.3f} [{low:.3f}, {high:.3f}] at {c:g}" for c, (value, low, high) in recall.items())
        yield f"index of {index.codes // 2} bytes a vector, {index.candidates} candidates; recall@1 by cosine {found}"


def checked(bank: TrainingBank) -> list[str]:
    """Reads every image again."""
    changed: list[str] = []
    with progress() as shown:
        bar = shown.add_task("images checked", total=len(bank), note="")
        for start in range(0, len(bank), 1024):
            changed += bank.rows.changed(range(start, min(start + 1024, len(bank))))
            shown.update(bar, advance=min(1024, len(bank) - start), note=f"{len(changed)} changed")
    lines = [f"check: {len(bank):,} images read again, {len(changed):,} are gone or changed since the bank was built"]
    return lines + [f"  {name}" for name in changed[:20]]


def _first() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _kept(bank: TrainingBank) -> str:
    """Returns the reason that nothing is kept on disk."""
    if bank.cache is None and bank.folder is None:
        return "this data is embedded in memory at each start; data.cache= names a folder where it takes one"
    return "fitted to the bank and embedded in memory at each start, nothing to keep"


@dataclass(frozen=True)
class Dedupe(Task):
    """Prints how many images go and how many stay; returns the file that keeps the answer.

    Runs with `data.deduplicate=<threshold>` read it and search nothing.

    Args:
        threshold, k, scale: see `amg.bank.dedupe.dedupe`.
    """

    builds = True

    threshold: float = 1.0
    k: int = 50
    scale: float = 0.5

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        bank = bank_of(config, deduplicate=None)
        start = time.perf_counter()
        with progress() as shown, told("task"):
            bar = shown.add_task("images searched", total=len(bank), note="")
            kept, file = reference(
                bank, self.threshold, self.k, self.scale, on_block=lambda n: shown.update(bar, advance=n)
            )
            shown.update(bar, completed=len(bank))
        print(
            f"data={config.data.get('name')}: {int(bank.multiplicity.sum()):,} images, {len(bank):,} distinct, "
            f"{len(bank) - len(kept):,} near-copies left out "
            f"(nL2 below {self.threshold:g}, k={self.k}, α={self.scale:g}), "
            f"{len(kept):,} to refer to; {time.perf_counter() - start:.1f} s\nkept in {file}"
        )
        return file
