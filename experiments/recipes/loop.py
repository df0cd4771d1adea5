"""Training loop of every recipe: Lightning on a budget of time or steps, with a checkpoint that survives a kill."""

import argparse
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

CHECKPOINT = "checkpoint.pt"


def arguments(
    description: str,
    out: str,
    minutes: float,
    name: list[str] | None = None,
    vae: bool = False,
    start: bool = False,
    distil: bool = False,
) -> argparse.Namespace:
    """Reads the options of a lab recipe and seeds torch; adds --name, --vae, --start and --distil on request."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help="CPU time per thread, in all resumed runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of checkpoint and results; default: .lab/…")
    parser.add_argument("--threads", type=int, default=1)
    if name:
        parser.add_argument("--name", choices=name, required=True)
    if vae:
        parser.add_argument("--vae", type=Path, default=Path(".lab/vae/vae"), help="folder that lab.train_vae wrote")
    if start:
        parser.add_argument("--start", type=Path, help="folder whose weights to begin with")
    if distil:
        parser.add_argument("--distil", type=float, help="CFG scale to distil from --start into the network")
    args = parser.parse_args()
    for option in ("vae", "start"):
        folder = getattr(args, option, None)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{option}: there is no folder {folder}")
    if getattr(args, "distil", None) and not args.start:
        parser.error("--distil needs --start, the folder of the teacher")
    args.out = args.out or Path(".lab") / (f"{out}_{args.name}" if name else out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


def learning_rate(peak: float, step: int, progress: float, warmup: int = 100) -> float:
    """Warms up linearly over steps, then follows a half cosine over the spent share of the budget, down to 2 %."""
    return peak * min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def load_alike(model: nn.Module, other: nn.Module) -> None:
    """Copies every parameter and buffer that has the same name and shape in both networks."""
    own = model.state_dict()
    alike = {
        name: value for name, value in other.state_dict().items() if name in own and value.shape == own[name].shape
    }
    model.load_state_dict(own | alike)


def average(model: nn.Module, decay: float = 0.999) -> AveragedModel:
    """Copies a model into an exponential moving average, `.module`, whose memory is short in the first steps."""

    @torch.no_grad()
    def follow(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        torch._foreach_lerp_(averages, values, 1 - min(decay, (2 + int(updates)) / (21 + int(updates))))

    return AveragedModel(model, multi_avg_fn=follow).requires_grad_(False).eval()


@contextmanager
def bf16() -> Iterator[None]:
    """Computes in bf16 where that is safe, on a CPU with AMX: half the time or less. Others emulate bf16, slowly."""
    # the backward pass of fused attention is slow in bf16
    enabled = torch.cpu.get_capabilities().get("amx_bf16", False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), sdpa_kernel(SDPBackend.MATH):
        yield


class Objective(L.LightningModule):
    """Loss of a step, for Lightning."""

    def __init__(self, model: nn.Module, loss_of: Callable[[int], Tensor], optimizer: torch.optim.Optimizer):
        super().__init__()
        self.model, self.loss_of, self.optimizer = model, loss_of, optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, step: int) -> Tensor:
        return self.loss_of(step)


@dataclass(eq=False)
class Training(L.Callback):
    """AdamW on `loss_of(step)` until the budget is spent; `out` keeps the checkpoint, from which it continues."""

    loss_of: Callable[[int], Tensor]  # samples its batch from torch's global generator, returns a scalar
    model: nn.Module  # trained in place
    out: Path
    peak: float  # learning rate after warm-up
    minutes: float = math.inf  # of CPU time per thread (a busy machine trains longer, not less), looks left out
    steps: float = math.inf  # the first budget that is spent ends the training
    ema: AveragedModel | None = None  # of `model`, see `average`
    weight_decay: float = 0.0
    schedule: Callable[[float, int, float], float] = learning_rate  # of peak, step and spent share of the budget
    clip: float | None = 1.0  # largest norm of the gradient
    save_every: float = 60.0  # seconds between checkpoints
    on_look: Callable[[int], dict] | None = None  # writes sheets of a step; its numbers go to `looks.jsonl`
    look_every: float = 600.0  # seconds between looks; the last is at the end

    def __post_init__(self) -> None:
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=self.peak, weight_decay=self.weight_decay, fused=True)
        self.step, self.spent, self.loss = 0, 0.0, None

    @property
    def progress(self) -> float:
        return max(self.spent / 60 / self.minutes, self.step / self.steps)

    def run(self, accelerator: str = "cpu") -> dict:
        """Trains, or continues; returns {"steps", "minutes", "loss"}, the loss a running mean of about 100 steps."""
        self.out.mkdir(parents=True, exist_ok=True)
        if (self.out / CHECKPOINT).exists():
            self.restore()
        self.saved = self.looked = self.spent
        if self.progress < 1:
            logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
            trainer = L.Trainer(
                accelerator=accelerator,
                devices=1,
                max_epochs=-1,
                gradient_clip_val=self.clip,
                callbacks=[self],
                logger=CSVLogger(self.out, name="log"),
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as self.bar:
                self.task = self.bar.add_task("training", total=1, completed=self.progress)
                trainer.fit(Objective(self.model, self.loss_of, self.optimizer), itertools.count(self.step))
        self.save()
        self.look()
        return {"steps": self.step, "minutes": self.spent / 60, "loss": self.loss}

    def on_train_batch_start(self, trainer: L.Trainer, *_) -> None:
        self.clock = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.peak, self.step, self.progress)

    def on_train_batch_end(self, trainer: L.Trainer, objective: Objective, outputs: dict, *_) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        loss = outputs["loss"].item()
        self.loss = loss if self.loss is None else 0.99 * self.loss + 0.01 * loss
        self.step += 1
        self.spent += (time.process_time() - self.clock) / torch.get_num_threads()
        rate = self.optimizer.param_groups[0]["lr"]
        objective.log_dict({"step": float(self.step), "minutes": self.spent / 60, "loss": self.loss, "lr": rate})
        self.bar.update(self.task, completed=self.progress, description=f"step {self.step} loss {self.loss:.4f}")
        trainer.should_stop = self.progress >= 1
        if self.spent - self.saved > self.save_every:
            self.save()
        if self.spent - self.looked > self.look_every:
            self.look()

    def look(self) -> None:
        self.looked = self.spent
        if self.on_look is not None:
            with torch.random.fork_rng(), (self.out / "looks.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step} | self.on_look(self.step)) + "\n")

    def save(self) -> None:
        """Writes beside and renames: a kill leaves the old checkpoint or the new one, never half of one."""
        self.saved = self.spent
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"random": torch.get_rng_state(), "step": self.step, "spent": self.spent, "loss": self.loss}
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        unfinished = self.out / f"{CHECKPOINT}.part"
        torch.save(state, unfinished)
        os.replace(unfinished, self.out / CHECKPOINT)

    def restore(self) -> None:
        state = torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["step"])
        torch.set_rng_state(state["random"])
        self.step, self.spent, self.loss = state["step"], state["spent"], state["loss"]
