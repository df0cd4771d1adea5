"""Samples with their truth and what detectors saw of them, as shards on disk; scores are made of these alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from rich.progress import track

from amg.detectors import Detector, network_calls, observe, places
from amg.worlds.world import World
from experiments.config.build import Parts, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.run import records
from experiments.run.conditions import conditions

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = 1_000_000
"""Chains that detectors learn on have seeds this much larger: they are never scored, however many samples are."""
KIND = "seen"


@dataclass(frozen=True)
class Sample:
    seed: int
    condition: str | int | None
    cause: str
    """"" where there is no prompt, "ordinary", or why the prompt makes copies."""
    held_out: bool = False


def labelled(run: RunConfig, world: World, ordinary: str) -> tuple[list[str | int] | None, list[str]]:
    """The prompts or labels of a run, and the cause of each; a model without planted prompts takes two sets in turn."""
    chosen = conditions(run, world)
    if run.conditioning != "prompt":
        return chosen, [""] * len(chosen or [None])
    if world.prompts:  # it brings planted ones and knows which they are
        return chosen, [world.cause(prompt) for prompt in chosen]
    from amg.prompts import read_prompts

    with told("task.ordinary"):
        others = read_prompts(ordinary)
    both = set(chosen) & set(others)
    if both:
        source = f"prompts={run.prompts}" if run.prompts else "prompt"
        raise ConfigError(
            [f"{source}: {len(both)} of these prompts are ordinary ones too (task.ordinary={ordinary}); name with "
             f"prompts= what model={run.model.get('name')} is known to copy"]
        )  # fmt: skip
    pairs = [
        (one, cause)
        for pair in zip_longest(chosen, others)
        for one, cause in zip(pair, ("memorized", "ordinary"), strict=True)
        if one
    ]
    return [prompt for prompt, _ in pairs], [cause for _, cause in pairs]


def samples_of(run: RunConfig, chosen: list[str | int] | None, causes: list[str], learn: int) -> list[Sample]:
    """The run's samples, and `learn` ordinary ones with seeds of their own."""
    every = list(zip(chosen or [None], causes, strict=True))
    ordinary = [pair for pair in every if pair[1] in ("", "ordinary")]
    if learn and not ordinary:
        raise ConfigError(["task.learn: the chosen detectors learn on ordinary prompts, and this run has none"])
    scored = [Sample(run.seed + i, *every[i % len(every)]) for i in range(run.n_samples)]
    first = run.seed + HELD_OUT
    return scored + [Sample(first + i, *ordinary[i % len(ordinary)], held_out=True) for i in range(learn)]


def draw_missing(
    run: RunConfig, parts: Parts, detectors: Mapping[str, Detector], samples: Sequence[Sample], run_dir: Path
) -> int:
    """Samples and observes what is not on disk; returns how many those were."""
    done = set(seen_on_disk(run_dir, detectors)["seed"])
    missing = [sample for sample in samples if sample.seed not in done]
    learners = {name: detector for name, detector in detectors.items() if detector.learns}
    batches = [
        (batch, used)
        for some, used in (
            ([s for s in missing if not s.held_out], detectors),
            ([s for s in missing if s.held_out], learners),
        )
        for batch in (some[i : i + run.batch_size] for i in range(0, len(some), run.batch_size))
    ]
    for batch, used in track(batches, "unguided chains", disable=not batches):
        rows = _rows(run, parts, detectors, used, batch)
        records.append(run_dir, rows, _schema(detectors), KIND)
    return len(missing)


def _rows(run, parts, detectors, used, batch: list[Sample]) -> list[dict[str, Any]]:
    chosen = [sample.condition for sample in batch]
    sampler = {"scheduler": parts.scheduler, "steps": run.sampler.steps, "eta": run.sampler.eta}
    seeds = [sample.seed for sample in batch]
    found = observe(parts.model, used, seeds, None if chosen[0] is None else chosen, s0=run.s0, **sampler)
    with torch.no_grad():
        images = parts.model.decode(found.x0).clamp(-1, 1)
        guide, judge = parts.similarity(images).value, parts.judge(images).value
    truth = parts.world.truth
    copies = judge > parts.judge.copy if truth is None else truth.copies(images)
    rows = []
    for i, sample in enumerate(batch):
        text = isinstance(sample.condition, str)
        row = {
            "seed": sample.seed,
            "held_out": sample.held_out,
            "cause": sample.cause,
            "prompt": sample.condition if text else None,
            "label": None if text else sample.condition,
            "similarity": guide[i].item(),
            "judge": judge[i].item(),
            "copy": copies[i].item(),
        }
        for name in detectors:
            row[f"seen_{name}"] = found.seen[name][i].flatten().tolist() if name in used else []
            row[f"seconds_{name}"] = found.seconds.get(name)
        rows.append(row)
    return rows


def _schema(detectors: Mapping[str, Detector]) -> pa.Schema:
    fixed = {"seed": pa.int64(), "held_out": pa.bool_(), "cause": pa.string()}
    fixed |= {"similarity": pa.float64(), "judge": pa.float64(), "copy": pa.bool_()}
    fields = [pa.field(name, kind, nullable=False) for name, kind in fixed.items()]
    fields += [pa.field("prompt", pa.string()), pa.field("label", pa.int64())]
    for name in detectors:
        fields += [pa.field(f"seen_{name}", pa.list_(pa.float64()), nullable=False)]
        fields += [pa.field(f"seconds_{name}", pa.float64())]
    return pa.schema(fields)


def seen_on_disk(run_dir: Path, detectors: Mapping[str, Detector]) -> pd.DataFrame:
    """All rows of a run's folder, also those that only an earlier command asked for."""
    return records.read(run_dir, _schema(detectors), KIND)


def asked(frame: pd.DataFrame, samples: Sequence[Sample]) -> pd.DataFrame:
    """The rows of these samples."""
    return frame[frame["seed"].isin([sample.seed for sample in samples])].reset_index(drop=True)


def scored(run: RunConfig, detectors: Mapping[str, Detector], frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One row per scored sample with `score_`, `calls_` and `seconds_<detector>`; how many chains were learned on.

    A held-out chain that came out as a copy is not learned on.
    """
    ordinary, rows = frame[frame["held_out"] & ~frame["copy"]], frame[~frame["held_out"]].reset_index(drop=True)
    result = rows[[name for name in rows.columns if not name.startswith("seen_")]].drop(columns="held_out")
    for name, detector in detectors.items():
        noise, chain = places(detector, run.sampler.steps)
        looks = len(noise) + len(chain)
        if detector.learns:
            if len(ordinary) < 2:
                every = int(frame["held_out"].sum())
                raise ConfigError(
                    [f"task.learn: {every - len(ordinary)} of {every} ordinary chains came out as copies; {name} needs "
                     "2 that did not: draw more"]
                )  # fmt: skip
            detector = detector.learn(_tensor(ordinary[f"seen_{name}"], looks))
        result[f"calls_{name}"] = network_calls(
            detector, run.sampler.steps, None if run.conditioning == "none" else run.s0
        )
        result[f"score_{name}"] = detector.score(_tensor(rows[f"seen_{name}"], looks)).numpy()
    return result, len(ordinary)


def _tensor(seen: pd.Series, looks: int) -> torch.Tensor:
    """(n, S, F)."""
    flat = np.stack([np.asarray(row, float) for row in seen]) if len(seen) else np.empty((0, looks))
    return torch.from_numpy(flat).view(len(seen), looks, -1)
