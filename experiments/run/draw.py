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

from amg.guidance import AntiMemorizationGuidance, Chain, State
from amg.guidance.base import flat
from amg.sampling import sample
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
        self.guidance = watched(parts)

    def predict_step(self, seeds: list[int], batch_idx: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
        start, parts, trace = time.perf_counter(), self.parts, []
        chosen = chosen_for(self.run, self.conditions, seeds)
        images = draw(
            self.run,
            parts,
            seeds,
            chosen,
            self.guidance,
            on_step=lambda step, state: trace.append((step.t, amg_state(state))),
        )
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


def watched(parts: Parts):
    """The guidance with something under it that records the similarity trace, unless it does so itself."""
    if any(isinstance(one, AntiMemorizationGuidance) for one in flat(parts.guidance)):
        return parts.guidance
    return Chain([AntiMemorizationGuidance(parts.similarity, parts.threshold, terms=()), parts.guidance])


def amg_state(state: Any) -> State | None:
    """AMG's part of a state: itself, or that within a chain's."""
    if isinstance(state, tuple):
        return next((found for one in state if (found := amg_state(one)) is not None), None)
    return state if isinstance(state, State) else None


def rows(parts: Parts, seeds: list[int], chosen: list | None, images: torch.Tensor, trace: list, seconds: float):
    """One record per sample; the final picture's similarity is measured anew."""
    model, bank = parts.model, parts.bank
    with torch.no_grad():
        match, judged = parts.similarity(images), parts.judge(images)
    component = model.responsible(images).tolist() if hasattr(model, "responsible") else None
    stacked = {
        name: torch.stack([getattr(state, name) for _, state in trace]).T.cpu() for name in State.__annotations__
    }
    times = torch.stack([t for t, _ in trace]).T.cpu()
    guided = steps_guided(parts.guidance, stacked["flagged"])
    result = []
    for i, seed in enumerate(seeds):
        condition = None if chosen is None else chosen[i]
        text = condition if isinstance(condition, str) else None
        known = component is not None
        result.append(
            {
                "seed": seed,
                "prompt": text,
                "label": condition if isinstance(condition, int) else None,
                "cause": model.cause(text) if text is not None and hasattr(model, "cause") else "",
                "similarity": match.value[i].item(),
                "nearest_index": match.index[i].item(),
                "nearest_caption": bank.captions[match.index[i]],
                "judge": judged.value[i].item(),
                "judge_index": judged.index[i].item(),
                "truth": bool(model.is_copy(torch.tensor(component[i]))) if known else None,
                "component": model.component_name(component[i]) if known else None,
                "aligned": bool(model.asked_for(condition)[component[i]]) if known else None,
                "planted": model.is_planted(bank.captions[judged.index[i]]) if hasattr(model, "is_planted") else None,
                "steps": len(trace),
                "steps_guided": guided[i],
                "trace_t": times[i].tolist(),
                "trace_similarity": stacked["similarity"][i].tolist(),
                "trace_threshold": stacked["threshold"][i].tolist(),
                "trace_flagged": stacked["flagged"][i].tolist(),
                **{f"norm_{term}": stacked[term][i].mean().item() for term in ("spe", "dup", "sim")},
                "dropped": int(stacked["dropped"][i].sum()),
                "seconds": seconds,
            }
        )
    return result


def steps_guided(guidance: Any, flagged: torch.Tensor) -> list[int | None]:
    """On how many steps each sample was guided: AMG acts where it is flagged, and what only watches never does.

    None for a rival: the flags are those of AMG watching it, and say nothing of what the rival did.

    Args:
        flagged: (B, T) bool.
    """
    parts = flat(guidance)
    terms = [one.terms for one in parts if isinstance(one, AntiMemorizationGuidance)]
    if any(terms):
        return flagged.sum(1).tolist()
    return [0 if len(terms) == len(parts) else None] * len(flagged)


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
