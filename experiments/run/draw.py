"""Sampling, by Lightning: one shard of records and images per batch, missing seeds only."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from amg.guidance import Guidance, Sight, Watch
from amg.sampling import sample
from amg.similarity.base import exactly
from amg.similarity.copies import derived_seed
from amg.step import Step
from amg.worlds.world import World
from experiments.config.build import Parts
from experiments.config.schema import ConfigError, RunConfig
from experiments.run import records
from experiments.run.predict import Bar, predict

Condition = str | int | None


class Probe(Protocol):
    """Looks on while a batch is sampled, and makes its records."""

    def __call__(self, step: Step, state: Any) -> None:
        """Sees a step and the guidance's state."""
        ...

    def rows(self, x0: torch.Tensor, images: torch.Tensor) -> list[dict[str, Any]]:
        """Returns one record per sample.

        Args:
            x0: the finished samples, (B, C, H, W).
            images: the same decoded, (B, 3, H, W) in [−1, 1].
        """
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of records: what looks on, and the shards that it leaves."""

    probe: Callable[[Parts, list[int], list[Condition]], Probe]
    """Makes the probe of a batch from its seeds and conditions."""
    folder: str = "records"
    schema: pa.Schema = records.SCHEMA
    filters: bool = False
    """True if `on_copy` acts on its images."""


class Generate(L.LightningModule):
    """Samples a batch of seeds; the thinking is in `amg.sampling`."""

    def __init__(self, run: RunConfig, parts: Parts, conditions: Mapping[int, Condition], kind: Kind):
        super().__init__()
        self.run, self.parts, self.conditions, self.kind = run, parts, conditions, kind

    @torch.no_grad()
    def predict_step(self, seeds: list[int], batch_idx: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
        start, on_copy = time.perf_counter(), self.run.on_copy if self.kind.filters else None
        rows, images = self.draw(seeds)
        redraws = self.run.tries if on_copy == "resample" else 0
        for k in range(1, redraws + 1):
            again = [i for i in range(len(rows)) if rows[i]["copied"]]
            if not again:
                break
            new, drawn = self.draw([seeds[i] for i in again], k)
            for i, row, image in zip(again, new, drawn, strict=True):
                rows[i], images[i] = row, image
        added = {"seconds": (time.perf_counter() - start) / len(seeds)}
        known = set(self.kind.schema.names)
        return [{name: v for name, v in (row | added).items() if name in known} for row in rows], images.cpu()

    def draw(self, seeds: list[int], k: int = 0) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Draws try k of some seeds: their records and images, black where they are refused.

        A record's "copied" says that the image is a copy, which a try may still replace.
        """
        run, parts = self.run, self.parts
        if k > 1:  # the first redraw is another first noise; from the second on the strong constants help
            parts = replace(parts, guidance=parts.guidance.stronger())
        own, conditions = [derived_seed(seed, k) for seed in seeds], [self.conditions[seed] for seed in seeds]
        probe = self.kind.probe(parts, own, conditions)
        x0 = sample(
            parts.model,
            own,
            guidance=parts.guidance,
            prompts=None if run.conditioning == "none" else conditions,
            s0=run.s0,
            scheduler=parts.scheduler,
            steps=run.sampler.steps,
            eta=run.sampler.eta,
            on_step=probe,
            decoder=parts.decoder,
        )
        images = parts.model.decode(x0).clamp(-1, 1)
        if run.on_copy is None or not self.kind.filters:
            rows = probe.rows(x0, images)
            return [row | {"seed": seed} for row, seed in zip(rows, seeds, strict=True)], images
        copied = self.copied(images)
        last = run.on_copy == "refuse" or (run.on_copy == "resample" and k == run.tries)
        refused = copied & last
        images[refused] = -1
        told = zip(probe.rows(x0, images), seeds, copied.tolist(), refused.tolist(), strict=True)
        return [row | {"seed": seed, "tries": k, "copied": c, "refused": r} for row, seed, c, r in told], images

    def copied(self, images: torch.Tensor) -> torch.Tensor:
        """Marks the images that the guide or the judge calls copies, (B,) bool."""
        both = (self.parts.similarity, self.parts.judge)
        return torch.stack([exactly(one, images).value.cpu() > one.copy for one in both]).any(0)

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier()  # what is measured next is the work of all processes


class Trace:
    """The records of a run: what was detected at each step, what the guidance keeps of it, and the truth at the end.

    The detection of a guidance that acts by one is its own; every other sample is watched as it would be by AMG.
    """

    def __init__(self, parts: Parts, seeds: list[int], conditions: list[Condition]):
        self.parts, self.seeds, self.conditions = parts, seeds, conditions
        self.watch = Watch(parts.similarity, parts.threshold, looks=parts.looks)
        self.sight: Sight | None = None
        self.steps: list[dict[str, torch.Tensor]] = []

    def __call__(self, step: Step, state: Any) -> None:
        kept = self.parts.guidance.record(state)
        if "similarity" not in kept:
            self.sight = self.watch(step, self.sight)
            kept |= {name: getattr(self.sight, name) for name in ("similarity", "lam", "flagged")}
        self.steps.append({"t": step.t, **kept})

    def of(self, name: str) -> torch.Tensor:
        """Returns one quantity of all samples and steps, (B, T); 0 if the guidance does not keep it."""
        nothing = torch.zeros_like(self.steps[0]["similarity"])
        return torch.stack([step.get(name, nothing) for step in self.steps], dim=1).cpu()

    def steps_guided(self) -> list[int | None]:
        """Returns on how many steps each sample was guided; None if the guidance does not say."""
        if "guided" not in self.steps[0] and type(self.parts.guidance) is not Guidance:
            return [None] * len(self.seeds)
        return self.of("guided").sum(1).int().tolist()

    def rows(self, x0: torch.Tensor, images: torch.Tensor) -> list[dict[str, Any]]:
        """Returns one record per sample; the final image's similarity is measured anew."""
        world = self.parts.world
        match, judged = (exactly(one, images) for one in (self.parts.similarity, self.parts.judge))
        truth = {"truth": None, "component": None, "bits": None, "aligned": None}
        if world.truth is not None:
            truth = {
                "truth": world.truth.copies(images).tolist(),
                "component": world.truth.component(images),
                "bits": world.truth.bits(self.conditions, images).tolist(),
                "aligned": world.truth.answers(self.conditions, images).tolist(),
            }
        captions, planted = world.bank.captions, world.planted
        names = ("t", "similarity", "lam", "flagged", "spe", "dup", "sim", "dropped")
        traces, guided = {name: self.of(name) for name in names}, self.steps_guided()
        return [
            {
                "seed": seed,
                **described(world, condition),
                "similarity": match.value[i].item(),
                "nearest_index": match.index[i].item(),
                "nearest_caption": captions[match.index[i]],
                "judge": judged.value[i].item(),
                "judge_index": judged.index[i].item(),
                **{name: values and values[i] for name, values in truth.items()},
                "planted": None if planted is None else planted(captions[judged.index[i]]),
                "steps": len(self.steps),
                "steps_guided": guided[i],
                "trace_t": traces["t"][i].tolist(),
                "trace_similarity": [
                    None if math.isnan(value) else value for value in traces["similarity"][i].tolist()
                ],
                "trace_threshold": traces["lam"][i].tolist(),
                "trace_flagged": traces["flagged"][i].tolist(),
                **{f"norm_{term}": traces[term][i].mean().item() for term in ("spe", "dup", "sim")},
                "dropped": int(traces["dropped"][i].sum()),
            }
            for i, (seed, condition) in enumerate(zip(self.seeds, self.conditions, strict=True))
        ]


RECORDS = Kind(Trace, filters=True)


def described(world: World, condition: Condition) -> dict[str, Any]:
    """Returns the columns of a record that name its condition."""
    text = condition if isinstance(condition, str) else None
    label = condition if isinstance(condition, int) else None
    return {"prompt": text, "label": label, "cause": "" if text is None else world.cause(text)}


class Writer(BasePredictionWriter):
    """Writes each batch as it comes: images first, then the shard that declares them done."""

    def __init__(self, run_dir: Path, kind: Kind):
        super().__init__("batch")
        self.run_dir, self.kind = run_dir, kind

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        from torchvision.transforms.functional import to_pil_image

        done, images = prediction
        folder = self.run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        for row, image in zip(done, images, strict=True):
            to_pil_image(image.add(1).mul(127.5).round().to(torch.uint8)).save(folder / f"{row['seed']}.png")
        records.append(self.run_dir, done, self.kind.schema, self.kind.folder)


class SampleBar(Bar):
    """Counts samples, and tells the share of them that was guided, where the guidance says so."""

    known, guided, seen = True, 0, 0

    def made(self, outputs: tuple[list[dict[str, Any]], torch.Tensor]) -> int:
        rows, _ = outputs
        steps = [row.get("steps_guided") for row in rows]
        self.known = None not in steps
        self.guided += sum(bool(one) for one in steps)
        self.seen += len(rows)
        return len(rows)

    def note(self) -> str:
        return f", {self.guided / self.seen:.0%} guided" if self.known else ""


def helps(
    run: RunConfig, parts: Parts, conditions: Mapping[int, Condition], run_dir: Path, kind: Kind = RECORDS
) -> bool:
    """Samples this process's share if Lightning started it for that alone; returns whether it did."""
    helper = int(os.environ.get("LOCAL_RANK", 0)) > 0
    if helper:
        generate(run, parts, conditions, run_dir, kind)
    return helper


def generate(
    run: RunConfig, parts: Parts, conditions: Mapping[int, Condition], run_dir: Path, kind: Kind = RECORDS
) -> int:
    """Samples the seeds that are missing on disk; returns how many those were.

    Args:
        conditions: the condition of each seed, see `experiments.run.draw.by_seed`.
        kind: what looks on, and the records that it leaves.
    """
    present = records.seeds_done(run_dir, kind.schema, kind.folder)
    missing = [seed for seed in conditions if seed not in present]
    if not missing:
        return 0
    parts = replace(parts, guidance=parts.guidance.ready())
    bar = SampleBar(f"{run.model.get('name')} · {run.guidance.get('name')}", len(missing), "samples")
    trainer = run.trainer | {"default_root_dir": str(run_dir)}
    module, writer = Generate(run, parts, conditions, kind), Writer(run_dir, kind)
    predict(trainer, module, missing, bar, writer, batch_size=run.batch_size, collate_fn=list)
    return len(missing)


def conditions(run: RunConfig, world: World) -> list[str | int] | None:
    """The P prompts or labels of a run; sample i takes number i mod P. None for unconditional sampling."""
    if run.conditioning == "none":
        return None
    if run.conditioning == "label":
        if not world.classes:
            raise ConfigError([f"conditioning=label: model={run.model.get('name')} knows no classes"])
        chosen: list[str | int] = list(run.labels if run.labels is not None else range(len(world.classes)))
    elif run.prompt is not None:
        chosen = [run.prompt] if isinstance(run.prompt, str) else list(run.prompt)
    else:
        chosen = _prompt_set(run, world)
    if not chosen:
        raise ConfigError(["labels, prompt or prompts: an empty list; give at least one"])
    try:
        world.model.check(chosen)  # raises with the model's own words, before anything is sampled
    except ValueError as error:
        raise ConfigError([f"{'labels' if run.conditioning == 'label' else 'prompt'}: {error}"]) from None
    return chosen


def by_seed(run: RunConfig, chosen: Sequence[str | int] | None) -> dict[int, str | int | None]:
    """Returns the prompt or label of each of the run's seeds; None for unconditional sampling."""
    return {seed: None if chosen is None else chosen[i % len(chosen)] for i, seed in enumerate(run.seeds)}


def _prompt_set(run: RunConfig, world: World) -> list[str | int]:
    if run.prompts in (None, "planted", "ordinary"):
        if not world.prompts:
            raise ConfigError(
                [f"prompt: model={run.model.get('name')} has no default prompts; give prompt= or prompts="]
            )
        if run.prompts is None:
            return list(world.prompts)
        return [p for p in world.prompts if (world.cause(p) == "ordinary") == (run.prompts == "ordinary")]
    from amg.prompts import read_prompts

    try:
        return read_prompts(run.prompts)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([f"prompts: {error}"]) from None
