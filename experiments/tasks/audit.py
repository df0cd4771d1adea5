"""`task=audit`: images made by any tool, or by a model, held against the training set: one page, and a CSV."""

from __future__ import annotations

import csv
import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.bank.images import UnreadableImage, decode
from amg.bank.sources.folder import pictures_in
from amg.metrics.values import Share, percent
from amg.similarity.copies import SampleReport, copy_threshold, find_copies, more_alike
from experiments.config.bind import locate
from experiments.config.build import bank_of, component, device, find_files, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.run.folder import PACKAGES
from experiments.run.predict import progress
from experiments.tasks.task import Task

SIDE, BATCH, DIRECTIONS = 128, 64, 128
"""Side that training images are resized to where `data.size` is not given; images compared at once; of PCA at most."""
PAIRS, SOURCES = 24, 24
"""Worst pairs, and copied training images, that the page shows."""


@dataclass(frozen=True)
class Side:
    """One of the two similarities of an audit, and what it says of the training set itself."""

    name: str
    similarity: Any
    others: Tensor
    """Similarity of each training image to its nearest other one, (N,)."""
    nearest: Tensor
    """Index of that one, (N,)."""
    threshold: float = 0.0
    false: Share = Share(0, 0)
    """Training images that the threshold calls copies of another, duplicates aside."""


@dataclass(frozen=True)
class Audit(Task):
    """Writes `report.html` and `images.csv`: copies by guide and judge, worst pairs, duplicates that explain them.

    The threshold of each similarity is its own `copy`, or more: the least beyond which at most `rate` of the training
    images lie when each is compared with the others. Duplicates, which both similarities call copies of another
    training image at their own `copy`, are left aside there.

    Args:
        images: a folder of images, sub-folders included; null draws `n_samples` images by the model.
        rate: false-positive rate that is allowed among the training images.
        mirrored: compares the mirror image of each, too.
        fail_above: share of copies, by guide or judge, beyond which the command ends with exit code 1.
    Raises:
        SystemExit: with a line, beyond `fail_above`.
    """

    builds = True

    images: str | None = None
    rate: float = 0.01
    mirrored: bool = True
    fail_above: float | None = None

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        if in_sweep:
            raise ConfigError(["task=audit: not in a sweep; audit one folder of images, or one model, at a time"])
        for name, value in (("rate", self.rate), ("fail_above", self.fail_above)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError([f"task.{name} must lie in [0, 1], got {value}"])
        start, files, place = time.perf_counter(), *self._images(config, command)
        find_files(config)
        bank = bank_of(config, size=config.data.get("size") or SIDE)
        place_of = device(config.trainer)
        sides = []
        for key in ("similarity", "judge"):
            with told(key):
                node = getattr(config, key)
                if "directions" in signature(locate(node["_target_"])).parameters:  # as many as images tell all apart
                    node = {"directions": max(2, min(DIRECTIONS, len(bank) // 8))} | node
                similarity = component(node, bank=bank, device=place_of)
                copy_threshold(similarity)
            sides.append(Side(str(node.get("name")), similarity, *self._others(bank, similarity, place_of)))
        duplicates = torch.stack([side.others > side.similarity.copy for side in sides]).all(0)
        guide, judge = (with_floor(side, ~duplicates, self.rate) for side in sides)
        reports, unread = self._compare(files, bank, guide, judge)
        if not reports:
            raise ConfigError([f"task.images={self.images}: none of {len(files)} images can be read, e.g. {unread[0]}"])
        place.mkdir(parents=True, exist_ok=True)
        shares = counted(list(reports.values()), guide, judge)
        _write_csv(place / "images.csv", reports, guide, judge, bank)
        page = place / "report.html"
        facts = [
            ("Command", command, True),
            ("Images", f"{len(reports):,} of {self.images or config.model.get('name')}", False),
            ("Left out", "; ".join(unread[:5]) + (f" and {len(unread) - 5} more" if len(unread) > 5 else ""), False),
            ("Training set", _described(bank, duplicates), False),
            ("Guide", _named(guide), False),
            ("Judge", _named(judge), False),
            ("Compared", "each image and its mirror image" if self.mirrored else "each image as it is", False),
            ("Digest of the training set", bank.digest(), True),
            ("Digest of the images", digest_of(reports), True),
            ("Versions", _versions(), False),
            ("Time", f"{time.perf_counter() - start:.0f} s", False),
        ]
        page.write_text(_page(reports, bank, guide, judge, duplicates, shares, facts), encoding="utf-8")
        for name, share in shares.items():
            print(f"{name}: {share}")
        print(f"report: {page}")
        worst = max(shares["copies by the guide"].value, shares["copies by the judge"].value)
        if self.fail_above is not None and worst > self.fail_above:
            more = f"more than task.fail_above={self.fail_above:g}: {page}"
            raise SystemExit(f"error: {percent(worst)} % of the images are copies, {more}")
        return page

    def _images(self, config: RunConfig, command: str) -> tuple[list[Path], Path]:
        """The images to compare, and the folder of the report; draws them where none are given."""
        if self.images is None:
            from experiments.tasks.generate import Generate

            run_dir = Generate().run(config, command)
            return [run_dir / "pictures" / f"{seed}.png" for seed in config.seeds], run_dir / "audit"
        folder = Path(os.path.expanduser(self.images))
        try:
            files = sorted(pictures_in(folder))
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError([f"task.images: {str(error).removeprefix('data.path: ')}"]) from None
        if not files:
            raise ConfigError([f"task.images={folder}: no images in it; name the folder that your tool wrote them to"])
        if config.data.get("name") != "model" and not config.data.get("path"):
            raise ConfigError(["data.path: name the folder of your training images"])
        key = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=4).hexdigest()
        return files, Path(config.output_dir or Path("runs") / "audit" / f"{folder.name}-{key}")

    def _others(self, bank: Any, similarity: Any, place: str) -> tuple[Tensor, Tensor]:
        """Compares each training image, as images are, with all others: similarities and indices, (N,) each."""
        values, indices = [], []
        for own in torch.arange(len(bank)).split(BATCH):
            images = bank.pictures[own].to(place)
            match = similarity.others(images, own)
            if self.mirrored:  # no descriptor was fitted to these, so that they are as novel as images are
                match = more_alike(match, similarity.others(images.flip(3), own))
            values.append(match.value.cpu())
            indices.append(match.index.cpu())
        return torch.cat(values), torch.cat(indices)

    def _compare(
        self, files: Sequence[Path], bank: Any, guide: Side, judge: Side
    ) -> tuple[dict[Path, SampleReport], list[str]]:
        size, reports, unread = tuple(bank.shape[1:]), {}, []
        with progress() as shown:
            bar = shown.add_task("images compared", total=len(files), note="")
            for start in range(0, len(files), BATCH):
                read = {}
                for file in files[start : start + BATCH]:
                    try:
                        read[file] = decode(file, size)
                    except UnreadableImage as error:
                        unread.append(f"{file.name} ({error})")
                if read:
                    found = find_copies(
                        torch.stack(list(read.values())),
                        bank,
                        guide.similarity,
                        guide.threshold,
                        judge=judge.similarity,
                        judge_threshold=judge.threshold,
                        mirrored=self.mirrored,
                    )
                    reports |= dict(zip(read, found, strict=True))
                shown.update(bar, advance=len(files[start : start + BATCH]))
        return reports, unread


def with_floor(side: Side, counted: Tensor, rate: float) -> Side:
    """A side with its threshold, and the share of false positives that it has there.

    Args:
        counted: the training images that are no duplicates, (N,) bool.
        rate: the share of them that may lie beyond the threshold.
    """
    values = side.others[counted].sort(descending=True).values
    threshold = copy_threshold(side.similarity)
    if len(values):
        threshold = max(threshold, values[min(int(rate * len(values)), len(values) - 1)].item())
    false = Share(int((values > threshold).sum()), len(values))
    return Side(side.name, side.similarity, side.others, side.nearest, threshold, false)


def counted(reports: Sequence[SampleReport], guide: Side, judge: Side) -> dict[str, Share]:
    """Shares of copies by the guide, by the judge and by both."""
    by_guide = [one.similarity > guide.threshold for one in reports]
    by_judge = [one.judge > judge.threshold for one in reports]
    both = [a and b for a, b in zip(by_guide, by_judge, strict=True)]
    names = ("copies by the guide", "copies by the judge", "copies by both")
    return {name: Share(sum(flags), len(flags)) for name, flags in zip(names, (by_guide, by_judge, both), strict=True)}


def digest_of(files: Sequence[Path] | dict[Path, Any]) -> str:
    """A hash of the files' contents, in the order of their names."""
    content = hashlib.blake2b(digest_size=16)
    for file in files:
        content.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return content.hexdigest()


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{package} {version(package)}" for package in ("memorization-free-diffusion", *PACKAGES))


def _named(side: Side) -> str:
    how = getattr(side.similarity, "described", "")
    raised = " (raised to that)" if side.threshold > copy_threshold(side.similarity) else ""
    return (
        f"{side.name}{f', {how}' if how else ''}: a copy beyond {side.threshold:.4g}{raised}; of the training images, "
        f"each against the others, {side.false} lie beyond it"
    )


def _described(bank: Any, duplicates: Tensor) -> str:
    total, height, width = int(bank.multiplicity.sum()), *bank.shape[1:]
    return (
        f"{bank.source}: {total:,} images, compared at {height}×{width}; {total - len(bank):,} are exact repeats, "
        f"{int(duplicates.sum()):,} of the others are near-duplicates"
    )


def _write_csv(file: Path, reports: dict[Path, SampleReport], guide: Side, judge: Side, bank: Any) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["file", "guide", "judge", "copy_guide", "copy_judge", "nearest", "caption", "occurrences"])
        for path, one in reports.items():
            flags = one.similarity > guide.threshold, one.judge > judge.threshold
            occurrences = int(bank.multiplicity[one.nearest])
            writer.writerow([path, one.similarity, one.judge, *flags, one.nearest, one.caption, occurrences])


def _page(reports, bank, guide, judge, duplicates, shares, facts) -> str:
    from experiments.report.page import template
    from experiments.report.pictures import training_picture
    from experiments.report.samples import inline

    def beyond(one: SampleReport) -> tuple[int, float]:
        return (one.similarity > guide.threshold) + (one.judge > judge.threshold), one.similarity

    def shown(index: int) -> str:
        return inline(training_picture(bank.pictures, index))

    ranked = sorted(reports.items(), key=lambda item: beyond(item[1]), reverse=True)
    once = {one.nearest: (file, one) for file, one in reversed(ranked)}  # a second copy of an image shows nothing new
    ranked = [item for item in ranked if item == once[item[1].nearest]]
    size = tuple(bank.shape[1:])
    pairs = [
        {
            "sample": inline(training_picture(decode(file, size)[None], 0)),
            "nearest": shown(one.nearest),
            "name": file.name,
            "by": _by(one, guide, judge),
            "guide": f"{one.similarity:.3f}",
            "judge": f"{one.judge:.3f}",
            "caption": one.caption,
        }
        for file, one in ranked[:PAIRS]
    ]
    copied = Counter(one.nearest for one in reports.values() if one.copy)
    sources = []
    for index, count in copied.most_common(SOURCES):
        near = int(guide.nearest[index]) if duplicates[index] else None
        sources.append(
            {
                "image": shown(index),
                "caption": bank.captions[index],
                "count": count,
                "occurrences": int(bank.multiplicity[index]),
                "near": None if near is None else shown(near),
                "near_caption": "" if near is None else bank.captions[near],
            }
        )
    sides = [
        {
            "name": name,
            "kind": side.name,
            "share": str(shares[f"copies by the {name.lower()}"]),
            "threshold": f"{side.threshold:.4g}",
            "false": str(side.false),
        }
        for name, side in (("Guide", guide), ("Judge", judge))
    ]
    return template("audit.html.j2").render(
        facts=[fact for fact in facts if fact[1]],
        sides=sides,
        both=str(shares["copies by both"]),
        pairs=pairs,
        sources=sources,
        more=max(len(copied) - SOURCES, 0),
        copied=any(one.copy for one in reports.values()),
    )


def _by(one: SampleReport, guide: Side, judge: Side) -> str:
    names = [
        name
        for name, yes in (("guide", one.similarity > guide.threshold), ("judge", one.judge > judge.threshold))
        if yes
    ]
    return " and ".join(names)
