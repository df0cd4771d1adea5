"""Unguided sampling as detectors see it: looks at pure noise, the chain, and what both cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amg.detectors.base import Detector
from amg.models.base import Model
from amg.sampling import sample
from amg.sampling.loop import first_noise, look
from amg.schedule import own_scheduler
from amg.step import Step


@dataclass(frozen=True)
class Observation:
    """What detectors saw of B samples, by the detector's name, and the samples."""

    seen: dict[str, Tensor]
    """What each kept, (B, S, G), float64, on the CPU; for `Detector.score`."""
    x0: Tensor
    """The finished unguided samples, (B, C, H, W)."""
    seconds: dict[str, float]
    """Per sample, as if the detector were alone; without encoding the prompt."""


@torch.no_grad()
def observe(
    model: Model,
    detectors: Mapping[str, Detector],
    seeds: Sequence[int],
    prompts: Sequence[str | int] | None = None,
    *,
    s0: float = 1.0,
    scheduler: type | None = None,
    steps: int = 50,
    eta: float = 0.0,
) -> Observation:
    """Shows all detectors one unguided chain per seed, and the looks at its noise x_T that they ask for.

    Args:
        prompts: B prompts or labels; None for unconditional sampling.
        others: as `amg.sampling.sample`'s.
    Raises:
        ValueError: for a look beyond the schedule, or for a detector of text where there is none.
    """
    clock = _Clock(model.device)
    seen: dict[str, list[Tensor]] = {name: [] for name in detectors}
    own = dict.fromkeys(detectors, 0.0)

    def show(name: str, step: Step, after: Tensor | None) -> None:
        value, took = clock(lambda: detectors[name].see(step, after).cpu().double())
        seen[name].append(value)
        own[name] += took

    both = s0 != 1 or any(detector.needs_prompts for detector in detectors.values())
    looks = _looks(model, scheduler, seeds, prompts, s0, steps, both)
    wanted = {name: places(detector, steps) for name, detector in detectors.items()}
    calls = {
        place: clock(lambda place=place: looks(place)) for place in sorted({p for n, _ in wanted.values() for p in n})
    }
    for name, (noise, _) in wanted.items():
        for place in noise:
            show(name, calls[place][0], None)

    pending: list[Step] = []  # a step is shown when the next one tells what became of it
    count = 0

    def watch(after: Tensor) -> None:
        nonlocal count
        for name, (_, chain) in wanted.items():
            if count in chain:
                show(name, pending[-1], after)
        count += 1

    def on_step(step: Step, state: Any) -> None:
        if pending:
            watch(step.x_t)
        pending[:] = [step]

    before = sum(own.values())
    options = {"prompts": prompts, "s0": s0, "scheduler": scheduler, "steps": steps, "eta": eta}
    x0, chain_took = clock(lambda: sample(model, seeds, on_step=on_step, **options))
    chain_took -= sum(own.values()) - before
    watch(x0)
    seconds = {}
    for name, (noise, chain) in wanted.items():
        took = own[name] + sum(calls[place][1] for place in noise)
        seconds[name] = (took + chain_took * (max(chain) + 1 if chain else 0) / steps) / len(seeds)
    kept = {name: detectors[name].keep(torch.stack(values, dim=1)) for name, values in seen.items()}
    return Observation(kept, x0, seconds)


def places(detector: Detector, steps: int) -> tuple[list[int], range]:
    """The places of the schedule, from 0, at which it looks at pure noise, and those of the chain that it watches.

    Raises:
        ValueError: for a place beyond the schedule.
    """
    if detector.chain.stop is not None and detector.chain.stop > steps:
        raise ValueError(
            f"sampler.steps={steps}: {type(detector).__name__} watches the first {detector.chain.stop} steps; "
            "take as many at least"
        )
    try:
        return [range(steps)[place] for place in detector.noise], range(steps)[detector.chain]
    except IndexError:
        raise ValueError(
            f"sampler.steps={steps}: {type(detector).__name__} looks at places {detector.noise} of the schedule; "
            f"take {max(max(detector.noise) + 1, -min(detector.noise))} steps at least"
        ) from None


def network_calls(detector: Detector, steps: int, s0: float | None) -> int:
    """Network evaluations per decision of the detector alone; a look with and without the condition is two.

    Args:
        s0: CFG scale; None for unconditional sampling.
    """
    noise, chain = places(detector, steps)
    guided = s0 is not None and s0 != 1
    both = guided or (s0 is not None and detector.needs_prompts)
    return len(noise) * (2 if both else 1) + (max(chain) + 1 if chain else 0) * (2 if guided else 1)


def _looks(model, scheduler, seeds, prompts, s0, steps, both) -> Callable[[int], Step]:
    """Pure noise seen at a place of the schedule; `both`: also without the condition, where there is one."""
    plan = own_scheduler(model, scheduler, steps)
    x_T = first_noise(model, [torch.Generator().manual_seed(seed) for seed in seeds])
    condition = uncond = None
    if prompts is not None:
        condition, uncond = model.encode(prompts), model.encode([None] * len(seeds)) if both else None
    return lambda place: look(model, plan, x_T, plan.timesteps[place], condition, uncond, s0, seeds)[0]


class _Clock:
    """Times a call, waiting for the device to be done."""

    def __init__(self, device: torch.device):
        self.wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, float]:
        self.wait()
        start = time.perf_counter()
        value = function()
        self.wait()
        return value, time.perf_counter() - start
