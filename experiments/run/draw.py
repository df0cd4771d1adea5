"""The thin Lightning side of sampling: one shard of records and pictures per batch, missing seeds only."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from amg.guidance import Guidance, Sight, Watch
from amg.sampling import sample
from amg.step import Step
from experiments.config.build import Parts, component
from experiments.config.schema import RunConfig
from experiments.run import records
from experiments.run.conditions import chosen_for

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Generate(L.LightningModule):
    """Draws a batch of seeds; the thinking is in `amg.sampling`."""

    def __init__(self, run: RunConfig, parts: Parts, conditions: list[str | int] | None):
        super().__init__()
        self.run, self.parts, self.conditions = run, parts, conditions

    def predict_step(self, seeds: list[int], batch_idx: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
        start, parts, trace = time.perf_counter(), self.parts, Trace(self.parts)
        chosen = chosen_for(self.run, self.conditions, seeds)
        images = draw(self.run, parts, seeds, chosen, parts.guidance, on_step=trace)
        seconds = (time.perf_counter() - start) / len(seeds)
        return rows(parts, seeds, chosen, images, trace, seconds), images.cpu()

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier()  # what is measured next is the work of all processes


@torch.no_grad()
def draw(run: RunConfig, parts: Parts, seeds: list[int], chosen: list | None, guidance: Any, on_step: Any = None):
    """Pictures (B, 3, H, W) in [−1, 1] of one batch, as the run's settings say."""
    x0 = sample(
        parts.model,
        seeds,
        guidance=guidance,
        prompts=chosen,
        s0=run.s0,
        scheduler=parts.scheduler,
        steps=run.sampler.steps,
        eta=run.sampler.eta,
        on_step=on_step,
    )
    return parts.model.decode(x0).clamp(-1, 1)


class Trace:
    """What was detected at each step of a batch, and what the guidance keeps of it; called as `on_step`.

    The detection of a guidance that acts by one is its own; every other sample is watched as it would be by AMG.
    """

    def __init__(self, parts: Parts):
        self.guidance, self.watch = parts.guidance, Watch(parts.similarity, parts.threshold)
        self.sight: Sight | None = None
        self.steps: list[dict[str, torch.Tensor]] = []

    def __call__(self, step: Step, state: Any) -> None:
        kept = self.guidance.record(state)
        if "similarity" not in kept:
            self.sight = self.watch(step, None if self.sight is None else self.sight.ever)
            kept |= {name: getattr(self.sight, name) for name in ("similarity", "lam", "flagged")}
        self.steps.append({"t": step.t, **kept})

    def of(self, name: str) -> torch.Tensor:
        """Returns one quantity of all samples and steps, (B, T); 0 if the guidance does not keep it."""
        nothing = torch.zeros_like(self.steps[0]["similarity"])
        return torch.stack([step.get(name, nothing) for step in self.steps], dim=1).cpu()

    def steps_guided(self) -> list[int | None]:
        """Returns on how many steps each sample was guided; None if the guidance does not say."""
        if "guided" not in self.steps[0] and type(self.guidance) is not Guidance:
            return [None] * len(self.steps[0]["t"])
        return self.of("guided").sum(1).int().tolist()


def rows(parts: Parts, seeds: list[int], chosen: list | None, images: torch.Tensor, trace: Trace, seconds: float):
    """One record per sample; the final picture's similarity is measured anew."""
    world, chosen = parts.world, chosen or [None] * len(seeds)
    with torch.no_grad():
        match, judged = parts.similarity(images), parts.judge(images)
    truth = {"truth": None, "component": None, "aligned": None}
    if world.truth is not None:
        truth = {
            "truth": world.truth.copies(images).tolist(),
            "component": world.truth.component(images),
            "aligned": world.truth.answers(chosen, images).tolist(),
        }
    nearest = [world.bank.captions[i] for i in judged.index]
    names = ("t", "similarity", "lam", "flagged", "spe", "dup", "sim", "dropped")
    traces, guided = {name: trace.of(name) for name in names}, trace.steps_guided()
    return [
        {
            "seed": seed,
            "prompt": condition if isinstance(condition, str) else None,
            "label": condition if isinstance(condition, int) else None,
            "cause": world.cause(condition) if isinstance(condition, str) else "",
            "similarity": match.value[i].item(),
            "nearest_index": match.index[i].item(),
            "nearest_caption": world.bank.captions[match.index[i]],
            "judge": judged.value[i].item(),
            "judge_index": judged.index[i].item(),
            **{name: values and values[i] for name, values in truth.items()},
            "planted": None if world.planted is None else world.planted(nearest[i]),
            "steps": len(trace.steps),
            "steps_guided": guided[i],
            "trace_t": traces["t"][i].tolist(),
            "trace_similarity": traces["similarity"][i].tolist(),
            "trace_threshold": traces["lam"][i].tolist(),
            "trace_flagged": traces["flagged"][i].tolist(),
            **{f"norm_{term}": traces[term][i].mean().item() for term in ("spe", "dup", "sim")},
            "dropped": int(traces["dropped"][i].sum()),
            "seconds": seconds,
        }
        for i, (seed, condition) in enumerate(zip(seeds, chosen, strict=True))
    ]


class Writer(BasePredictionWriter):
    """Writes each batch as it comes: pictures first, then the shard that declares them done."""

    def __init__(self, run_dir: Path):
        super().__init__("batch")
        self.run_dir = run_dir

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        from torchvision.transforms.functional import to_pil_image

        done, images = prediction
        folder = self.run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        for row, image in zip(done, images, strict=True):
            to_pil_image(image.add(1).mul(127.5).round().to(torch.uint8)).save(folder / f"{row['seed']}.png")
        records.append(self.run_dir, done)


class Bar(Callback):
    """A progress bar that counts samples, with their speed and the share of them that was guided."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.guided, self.done = label, total, 0, 0

    def on_predict_start(self, trainer, module):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[note]}"), disable=not trainer.is_global_zero)
        self.task = self.progress.add_task(self.label, total=self.total, note="")
        self.progress.start()
        self.start = time.perf_counter()

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        done, _ = outputs
        self.done += len(done)
        known = all(row["steps_guided"] is not None for row in done)
        self.guided += sum(row["steps_guided"] > 0 for row in done) if known else 0
        speed = self.done / (time.perf_counter() - self.start)
        note = f"{speed:.1f} samples/s" + (f", {self.guided / self.done:.0%} guided" if known else "")
        self.progress.update(self.task, advance=len(done) * trainer.world_size, note=note)

    def on_predict_end(self, trainer, module):
        self.progress.stop()

    def on_exception(self, trainer, module, exception):
        self.progress.stop()


def generate(run: RunConfig, parts: Parts, conditions: list[str | int] | None, run_dir: Path) -> int:
    """Draws the seeds that are missing on disk; returns how many those were."""
    present = records.seeds_done(run_dir)
    missing = [seed for seed in range(run.seed, run.seed + run.n_samples) if seed not in present]
    if not missing:
        return 0
    parts = replace(parts, guidance=parts.guidance.ready())
    loader = DataLoader(missing, batch_size=run.batch_size, collate_fn=list)
    bar = Bar(f"{run.model.get('name')} · {run.guidance.get('name')}", len(missing))
    options = {"callbacks": [Writer(run_dir), bar], "logger": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*|.*treespec.*")
        trainer = component({**run.trainer, **options, "default_root_dir": str(run_dir)})
        try:
            trainer.predict(Generate(run, parts, conditions), loader, return_predictions=False)
        except SystemExit as error:  # what Lightning makes of Ctrl-C; a sweep must end too
            raise KeyboardInterrupt from error
    return len(missing)
