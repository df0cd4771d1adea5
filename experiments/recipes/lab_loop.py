"""The training loop that all lab recipes share: a budget in minutes, one checkpoint that survives a kill."""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

CHECKPOINT = "checkpoint.pt"


def arguments(
    description: str,
    out: str,
    minutes: float,
    name: list[str] | None = None,
    vae: Path | None = None,
    start: bool = False,
) -> argparse.Namespace:
    """The options of every recipe (one thread leaves the other cores to you), and a name or an autoencoder if asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="CPU time per thread, all resumed parts together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where checkpoint and results go; .lab/… if not given")
    parser.add_argument("--threads", type=int, default=1)
    if name:
        parser.add_argument("--name", choices=name, required=True)
    if vae:
        parser.add_argument("--vae", type=Path, default=vae, help="folder that train_lab_vae wrote")
    if start:
        parser.add_argument("--start", type=Path, help="pipeline folder whose weights to begin with")
    args = parser.parse_args()
    args.out = args.out or Path(".lab") / (f"{out}_{args.name}" if name else out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def learning_rate(peak: float, step: int, progress: float, warmup: int = 100) -> float:
    """Linear warm-up over steps, then a half cosine over the share of the time that is spent, ending at 2 %."""
    return peak * min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def save(value: dict, path: Path) -> None:
    """Writes beside and renames, so that a kill leaves the old file or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def train(
    loss_of: Callable[[int], Tensor],
    model: nn.Module,
    out: Path,
    minutes: float,
    peak: float,
    ema: nn.Module | None = None,
    ema_decay: float = 0.999,
    weight_decay: float = 0.0,
    every: float = 60.0,
    on_look: Callable[[int], None] | None = None,
    look_every: float = 600.0,
) -> dict:
    """Minimises `loss_of(step)` by AdamW until the minutes are spent.

    Args:
        loss_of: draws its own batch from torch's global generator and returns a scalar.
        model: whose parameters are trained, in place.
        out: folder of `checkpoint.pt`; if there is one, training goes on from it (its random state too).
        minutes: budget of CPU time per thread (a busy machine trains longer, not less), checkpoints and looks left out.
        peak: the learning rate after warm-up.
        ema: a copy of `model` that follows it by an exponential mean, short in the first steps.
        every: seconds between checkpoints.
        on_look: called with the step now and then and at the end, for sheets and measurements.
        look_every: seconds between these calls.
    Returns:
        {"steps", "minutes", "loss"}; the loss is a running mean of about 100 steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=weight_decay, fused=True)
    step, spent, running = 0, 0.0, None
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        if ema is not None:
            ema.load_state_dict(kept["ema"])
        torch.set_rng_state(kept["random"])
        step, spent, running = kept["step"], kept["spent"], kept["loss"]

    def write() -> None:
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        kept |= {"step": step, "spent": spent, "loss": running}
        save(kept | ({"ema": ema.state_dict()} if ema is not None else {}), checkpoint)
        with (out / "log.csv").open("a") as log:
            log.write(f"{step},{spent / 60:.2f},{running}\n")

    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("training", total=minutes * 60, completed=spent)
        saved = looked = spent
        while spent < minutes * 60:
            start = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peak, step, spent / (minutes * 60))
            loss = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if ema is not None:
                follow(ema, model, min(ema_decay, (1 + step) / (20 + step)))
            running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
            spent += (time.process_time() - start) / torch.get_num_threads()
            bar.update(task, completed=spent, description=f"step {step} loss {running:.4f}")
            if spent - saved > every:
                write()
                saved = spent
            if on_look is not None and spent - looked > look_every:
                on_look(step)
                looked = spent
    write()
    if on_look is not None:
        on_look(step)
    return {"steps": step, "minutes": spent / 60, "loss": running}


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema ← decay · ema + (1 − decay) · model."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
