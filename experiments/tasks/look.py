"""`task=search` finds the training images nearest to an image, `task=duplicates` the near-copies among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amg.bank import TrainingBank
from amg.bank.dedupe import clusters
from amg.bank.images import UnreadableImage, decode
from experiments.config.build import bank_of, component, device, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.report.page import template
from experiments.report.pictures import training_picture
from experiments.report.samples import inline
from experiments.run.predict import progress
from experiments.tasks.task import Task

SHOWN = 200
"""Clusters on the page; the table holds all."""
EACH = 12
"""Images of a cluster on the page."""


def prepared(config: RunConfig) -> tuple[TrainingBank, Any]:
    """The bank and the similarity that searches it."""
    bank = bank_of(config)
    with told("similarity"):
        return bank, component(config.similarity, bank=bank, device=device(config.trainer))


@dataclass(frozen=True)
class Search(Task):
    """Prints the training images nearest to an image, and shows them on a page; returns it.

    Args:
        query: an image file, or a folder of them.
        k: how many are listed.
        out: the page's folder.
    """

    query: str
    k: int = 5
    out: str = "runs/search"

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        files = _queries(Path(self.query))
        bank, similarity = prepared(config)
        sections = []
        name = config.similarity.get("name")
        for file in files:
            size = bank.shape[1:] if getattr(similarity, "compares_pixels", False) else None
            try:
                image = decode(file, size)
            except UnreadableImage as error:
                raise ConfigError([f"task.query: {file} is no image that can be read ({error})"]) from None
            with told("similarity"):
                where = device(config.trainer)
                values, index = similarity.nearest(image[None].to(where), min(self.k, len(bank)))
            rows = list(zip(index[0].tolist(), values[0].tolist(), strict=True))
            print(f"{file}: nearest by {name}, σ > {similarity.copy:g} counts as a copy")
            for entry, value in rows:
                print(f"  {value:.3f}  {bank.keys[entry]}  {bank.captions[entry]}".rstrip())
            own = {"source": inline(training_picture([image], 0)), "told": "query", "name": file.name, "caption": ""}
            sections.append(
                {"title": file.name, "images": [own, *(shown(bank, entry, f"{value:.3f}") for entry, value in rows)]}
            )
        return write(
            Path(self.out), "Nearest training images", f"{len(bank):,} images of {bank.source}, by {name}", sections
        )


@dataclass(frozen=True)
class Duplicates(Task):
    """Groups near-copies among the training images: which images a model will memorize, and why.

    Leaves `duplicates.parquet` (cluster, key, captions, occurrences, cosine to the first of its cluster), `keep.txt`
    (keys, one of each cluster and all others: a keep-list for training) and `report.html`.

    Args:
        above: cosine from which two images are near-copies.
        k: neighbours of each image that are looked at.
        out: the folder.
    """

    above: float = 0.9
    k: int = 16
    out: str = "runs/duplicates"

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        bank, similarity = prepared(config)
        if not hasattr(similarity, "training"):
            name = config.similarity.get("name")
            raise ConfigError([f"similarity={name}: near-copies are found by a descriptor; task=dedupe takes nL2"])
        vectors = similarity.vectors(torch.zeros(1, device=device(config.trainer)))
        with progress() as bar, told("task"):
            task = bar.add_task("images compared", total=len(bank), note="")
            found = clusters(
                vectors,
                similarity.index_of(vectors[:1].float()),
                self.above,
                self.k,
                lambda n: bar.update(task, advance=n),
            )
        folder = Path(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        rows, gone, sections = [], set(), []
        for number, (members, cosines) in enumerate(found):
            gone |= set(members[1:])
            captions = bank.all_captions[members]
            occurs = bank.multiplicity[members].tolist()
            keys = bank.keys[members]
            rows += zip([number] * len(members), keys, map(list, captions), occurs, cosines, strict=True)
            if number < SHOWN:
                sections.append(_section(bank, members, cosines, captions, occurs))
        columns = list(zip(*rows, strict=True)) or [[]] * 5
        names = ("cluster", "key", "captions", "occurrences", "cosine")
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), folder / "duplicates.parquet")
        with (folder / "keep.txt").open("w", encoding="utf-8") as out:
            out.writelines(f"{key}\n" for entry, key in enumerate(bank.keys) if entry not in gone)
        exact = bank.counts["repeats"]
        facts = (
            f"{len(bank):,} distinct images of {bank.source} ({exact:,} exact repeats): {len(found):,} groups of "
            f"near-copies (cosine > {self.above:g}), {len(gone):,} images beyond the first of their group"
        )
        print(facts)
        return write(folder, "Near-copies among the training images", facts, sections)


def _section(
    bank: TrainingBank,
    members: Sequence[int],
    cosines: Sequence[float],
    captions: Sequence[Sequence[str]],
    occurs: Sequence[int],
) -> dict[str, Any]:
    """A group with what its captions say of memorization."""
    texts = [text for some in captions for text in some]
    distinct = len(set(texts))
    why = (
        "no caption"
        if not texts
        else "all share one caption: prompts that hold it will copy them"
        if distinct == 1
        else f"{distinct} captions: the image itself is repeated, so that many prompts lead to it"
    )
    total = sum(occurs)
    images = [
        shown(bank, entry, f"{cosine:.3f}" + (f" · {n} times" if n > 1 else ""))
        for entry, cosine, n in list(zip(members, cosines, occurs, strict=True))[:EACH]
    ]
    return {"title": f"{len(members)} images, {total} occurrences", "note": why, "images": images}


def shown(bank: TrainingBank, entry: int, words: str) -> dict[str, str]:
    """Returns the page's entry of a training image; without its file, the image is empty."""
    try:
        source = inline(training_picture(bank.pictures, entry))
    except ValueError:
        source = ""
    return {"source": source, "told": words, "name": bank.keys[entry], "caption": bank.captions[entry]}


def write(folder: Path, title: str, facts: str, sections: list[dict[str, Any]]) -> Path:
    """Writes `report.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(template("images.html.j2").render(title=title, facts=facts, sections=sections), encoding="utf-8")
    print(f"page: {page}")
    return page


def _queries(path: Path) -> list[Path]:
    from amg.bank.sources.folder import pictures_in

    if path.is_file():
        return [path]
    try:
        return pictures_in(path)
    except FileNotFoundError as error:
        raise ConfigError([f"task.query: {str(error).removeprefix('data.path: ')}"]) from None
