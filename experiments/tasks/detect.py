"""`task=detect`: how well detectors tell, from unguided sampling, which prompts and samples are memorized.

Samples, their truth and what detectors saw of them are shards on disk; scores are made of these only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from amg.detectors import Detector, Observer, network_calls, places
from amg.step import Step
from amg.worlds.world import World
from experiments.config.bind import locate
from experiments.config.build import Parts, build, component, told
from experiments.config.schema import ConfigError, NotApplicable, RunConfig
from experiments.run import records
from experiments.run.draw import Condition, Kind, by_seed, conditions, generate, helps
from experiments.run.folder import facts, folder, in_folder
from experiments.tasks.detect_table import compare, notes, present_jobs, present_sweep, refuse_one_kind
from experiments.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

NODES = ("data", "detector", "judge", "model", "similarity")
"""Components that decide a score, besides the run-level keys that decide a sample."""
HELD_OUT = 1_000_000
"""Trajectories that detectors learn on have seeds this much larger: they are never scored."""
SEEN = "seen"


@dataclass(frozen=True)
class Detect(Task):
    """Scores `n_samples` unguided samples by every chosen detector; returns the run's folder.

    It holds `scores.csv` and `scores.parquet` (one row per sample), and in `seen/` all that the detectors saw: the
    same command again samples nothing anew. Table, ROC figures and report are those of a sweep of one job.

    Args:
        ordinary: prompts that are not memorized, what `amg.prompts.read_prompts` takes; for models that bring no
            planted prompts of their own, beside `prompts`, which then are the memorized ones.
        learn: ordinary trajectories, not scored, that detectors learn on.
        published: numbers of papers by detector, `auc` and `tpr` (per cent), for the first part of the table.
    """

    builds = True

    ordinary: str = "ordinary_laion"
    learn: int = 64
    published: dict[str, dict[str, float]] | None = None

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        _check(config, self.learn)
        reasons = _not_applicable(config)
        parts = build(config)
        detectors = _detectors(config, parts, reasons)
        chosen, causes = labelled(config, parts.world, self.ordinary)
        plan = planned(config, chosen, causes, self.learn if any(d.learns for d in detectors.values()) else 0)
        run_dir = folder(config, parts, chosen, NODES, "detect")
        causes_of = dict(zip(chosen or [None], causes, strict=True))
        kind = Kind(partial(Seen, config, detectors, causes_of), SEEN, _schema(detectors))
        if helps(config, parts, plan, run_dir, kind):
            return run_dir
        with in_folder(config, run_dir, {"command": command, **facts(config, parts, chosen)}, NODES, SEEN) as manifest:
            drawn = generate(config, parts, plan, run_dir, kind)
            frame = records.read(run_dir, kind.schema, SEEN)  # an earlier command may have asked for more
            scores, learned = scored(config, detectors, frame[frame["seed"].isin(list(plan))].reset_index(drop=True))
            scores.to_parquet(run_dir / "scores.parquet", index=False)
            scores.to_csv(run_dir / "scores.csv", index=False)
            sections = compare(scores)
            if not in_sweep:  # whose jobs are compared all together: one range of seeds may hold no copy
                refuse_one_kind(sections, scores)
            said = notes(config, parts, detectors, reasons, any(causes), learned)
            manifest.write(status="done", metrics={section.title: section.metrics for section in sections}, notes=said)
        if not in_sweep:
            job = {"status": "done", "run_dir": str(run_dir), "overrides": [], "guidance": None, "key": "run"}
            present_jobs([job | {"detector": list(config.detector)}], run_dir, command)
            print(f"{drawn} drawn" if drawn else "nothing left to draw")
        return run_dir

    @staticmethod
    def present(results: Sequence[Mapping[str, Any]], command: str = "") -> Path:
        return present_sweep(results, command)


def _check(run: RunConfig, learn: Any) -> None:
    """Raises for mistakes that need no weights."""
    lines = []
    if run.guidance["_target_"] != "amg.guidance.Guidance":
        lines.append(f"guidance={run.guidance.get('name')}: task=detect scores unguided sampling; leave guidance out")
    if not run.detector:
        lines.append("detector: choose at least one of conf/detector, e.g. detector=[magnitude,norms]")
    if isinstance(learn, bool) or not isinstance(learn, int) or learn < 2:
        lines.append(f"task.learn must be a whole number >= 2, got {learn}")
    if lines:
        raise ConfigError(lines)


def _not_applicable(run: RunConfig) -> dict[str, str]:
    """Returns the reason that a detector cannot serve, in one line, by its name.

    Raises:
        NotApplicable: where none can.
    """
    text = f"model={run.model.get('name')}, conditioning={run.conditioning}"
    reasons = {
        name: f"detector={name}: looks at what the prompt changes, and this run has no text ({text})"
        for name, node in run.detector.items()
        if locate(node["_target_"]).needs_prompts and run.conditioning != "prompt"
    }
    if len(reasons) == len(run.detector):
        raise NotApplicable([*reasons.values()])
    return reasons


def _detectors(run: RunConfig, parts: Parts, reasons: dict[str, str]) -> dict[str, Any]:
    """The detectors that can serve; one that looks along a trajectory without CFG joins the `reasons`.

    Raises:
        ConfigError: also for one that looks beyond the schedule.
        NotApplicable: where none is left.
    """
    from amg.detectors import places

    found = {}
    for name, node in run.detector.items():
        if name in reasons:
            continue
        with told(f"detector.{name}"):
            found[name] = component(node, model=parts.model, bank=parts.bank, similarity=parts.similarity)
        try:
            _, chain = places(found[name], run.sampler.steps)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        if found[name].needs_prompts and chain and run.s0 == 1:
            reasons[name] = f"detector.{name}: at s0=1 a trajectory has no unconditional prediction; set s0 > 1"
            del found[name]
    if not found:
        raise NotApplicable([*reasons.values()])
    return found


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


def planned(run: RunConfig, chosen: list[str | int] | None, causes: list[str], learn: int) -> dict[int, Condition]:
    """Returns the condition of each of the run's seeds, and of `learn` ordinary ones that are held out."""
    ordinary = [one for one, cause in zip(chosen or [None], causes, strict=True) if cause in ("", "ordinary")]
    if learn and not ordinary:
        raise ConfigError(["task.learn: the chosen detectors learn on ordinary prompts, and this run has none"])
    first = run.seed + HELD_OUT
    return by_seed(run, chosen) | {first + i: ordinary[i % len(ordinary)] for i in range(learn)}


class Seen:
    """The records of detection: the truth of each sample and what every detector saw of it.

    Args:
        causes: why each condition is memorized: "" if there is no prompt, "ordinary", or why it makes copies.
    """

    def __init__(
        self,
        run: RunConfig,
        detectors: Mapping[str, Detector],
        causes: Mapping[Condition, str],
        parts: Parts,
        seeds: list[int],
        conditions: list[Condition],
    ):
        self.run, self.causes, self.parts, self.seeds, self.conditions = run, causes, parts, seeds, conditions
        prompts = None if run.conditioning == "none" else conditions
        settings = {"s0": run.s0, "scheduler": parts.scheduler, "steps": run.sampler.steps}
        self.observer = Observer(parts.model, detectors, seeds, prompts, **settings)

    def __call__(self, step: Step, state: Any) -> None:
        self.observer(step)

    def rows(self, x0: torch.Tensor, images: torch.Tensor) -> list[dict[str, Any]]:
        """Returns one record per sample; without the truth, the judge says which are copies."""
        found, truth = self.observer.finish(x0), self.parts.world.truth
        guide, judge = self.parts.similarity(images).value, self.parts.judge(images).value
        copies = judge > self.parts.judge.copy if truth is None else truth.copies(images)
        return [
            {
                "seed": seed,
                "held_out": seed >= self.run.seed + HELD_OUT,
                "cause": self.causes[condition],
                "prompt": condition if isinstance(condition, str) else None,
                "label": condition if isinstance(condition, int) else None,
                "similarity": guide[i].item(),
                "judge": judge[i].item(),
                "copy": copies[i].item(),
                **{f"seen_{name}": seen[i].flatten().tolist() for name, seen in found.seen.items()},
                **{f"seconds_{name}": seconds for name, seconds in found.seconds.items()},
            }
            for i, (seed, condition) in enumerate(zip(self.seeds, self.conditions, strict=True))
        ]


def _schema(detectors: Mapping[str, Detector]) -> pa.Schema:
    fixed = {"seed": pa.int64(), "held_out": pa.bool_(), "cause": pa.string()}
    fixed |= {"similarity": pa.float64(), "judge": pa.float64(), "copy": pa.bool_()}
    fields = [pa.field(name, kind, nullable=False) for name, kind in fixed.items()]
    fields += [pa.field("prompt", pa.string()), pa.field("label", pa.int64())]
    for name in detectors:
        fields += [pa.field(f"seen_{name}", pa.list_(pa.float64()), nullable=False)]
        fields += [pa.field(f"seconds_{name}", pa.float64())]
    return pa.schema(fields)


def scored(run: RunConfig, detectors: Mapping[str, Detector], frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One row per scored sample: `score_`, `calls_` and `seconds_<detector>`; and how many were learned on.

    A held-out trajectory that came out as a copy is not learned on.
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
                    [f"task.learn: {every - len(ordinary)} of {every} ordinary trajectories came out as copies; {name} "
                     "needs 2 that did not: draw more"]
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
