"""Unguided sampling as detectors see it: looks at pure noise, the trajectory, and what both cost."""

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
from amg.schedule import noise_level, own_scheduler
from amg.step import Step


@dataclass(frozen=True)
class Observation:
    """Observations of B samples by each detector's name, and the samples."""

    seen: dict[str, Tensor]
    """Numbers that each detector kept, (B, S, G), float64, on the CPU; for `Detector.score`."""
    x0: Tensor
    """The finished unguided samples, (B, C, H, W)."""
    seconds: dict[str, float]
    """Per sample, as if the detector were alone; without encoding the prompt."""


class Observer:
    """Shows detectors a batch of unguided trajectories while it is sampled; the `on_step` of `amg.sampling.sample`.

    It makes the looks at the noise x_T that they ask for when it is made, and returns what they saw by `finish`.

    Args:
        seeds: of the batch, B.
        prompts: B prompts or labels; None for unconditional sampling.
        others: those that the batch is sampled with.
    Raises:
        ValueError: for a look beyond the schedule, or for a detector of text where there is none.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        detectors: Mapping[str, Detector],
        seeds: Sequence[int],
        prompts: Sequence[str | int] | None = None,
        *,
        s0: float = 1.0,
        scheduler: type | None = None,
        steps: int = 50,
    ):
        self.detectors, self.samples, self.steps = detectors, len(seeds), steps
        self.clock = _Clock(model.device)
        self.seen: dict[str, list[Tensor]] = {name: [] for name in detectors}
        self.took = dict.fromkeys(detectors, 0.0)
        """Seconds of each detector, and of the looks at noise that it asked for."""
        wanted = {name: places(detector, steps) for name, detector in detectors.items()}
        self.watched = {name: chain for name, (_, chain) in wanted.items()}
        both = s0 != 1 or any(detector.needs_prompts for detector in detectors.values())
        self.at_start: list[str] = []
        if getattr(model, "pipeline", None) is not None:  # it is asked nothing beside its trajectory, of the same noise
            self.at_start, wanted = _at_start(model, detectors, wanted, s0), {}
        looks = _looks(model, scheduler, seeds, prompts, s0, steps, both) if wanted else None
        every = sorted({place for noise, _ in wanted.values() for place in noise})
        steps_at = {place: self.clock(lambda place=place: looks(place)) for place in every}
        for name, (noise, _) in wanted.items():
            for place in noise:
                step, seconds = steps_at[place]
                self._show(name, step, None)
                self.took[name] += seconds
        self.before = sum(self.took.values())
        self.last: Step | None = None  # a step is shown when the next one tells what became of it
        self.count = 0
        self.start = self.clock.now()

    @torch.no_grad()
    def __call__(self, step: Step, state: Any = None) -> None:
        for name in self.at_start:
            self._show(name, step, None)
        self.at_start = []
        if self.last is not None:
            self._became(step.x_t)
        self.last = step

    @torch.no_grad()
    def finish(self, x0: Tensor) -> Observation:
        """Returns what was seen; x0 is what `sample` returned."""
        chain = self.clock.now() - self.start - (sum(self.took.values()) - self.before)
        self._became(x0)
        share = {name: (max(places) + 1 if places else 0) / self.steps for name, places in self.watched.items()}
        seconds = {name: (took + chain * share[name]) / self.samples for name, took in self.took.items()}
        seen = {name: self.detectors[name].keep(torch.stack(values, dim=1)) for name, values in self.seen.items()}
        return Observation(seen, x0, seconds)

    def _became(self, after: Tensor) -> None:
        for name, chain in self.watched.items():
            if self.count in chain:
                self._show(name, self.last, after)
        self.count += 1

    def _show(self, name: str, step: Step, after: Tensor | None) -> None:
        value, took = self.clock(lambda: self.detectors[name].see(step, after).cpu().double())
        self.seen[name].append(value)
        self.took[name] += took


def observe(
    model: Model,
    detectors: Mapping[str, Detector],
    seeds: Sequence[int],
    prompts: Sequence[str | int] | None = None,
    *,
    eta: float = 0.0,
    **options: Any,
) -> Observation:
    """Samples one unguided trajectory per seed and shows it to all detectors.

    Args:
        options: s0, scheduler and steps, as `amg.sampling.sample`'s.
    """
    observer = Observer(model, detectors, seeds, prompts, **options)
    return observer.finish(sample(model, seeds, prompts=prompts, on_step=observer, eta=eta, **options))


def places(detector: Detector, steps: int) -> tuple[list[int], range]:
    """The places of the schedule, from 0, at which it looks at pure noise, and those of the trajectory that it watches.

    Raises:
        ValueError: for a place beyond the schedule.
    """
    last = detector.chain.stop
    if last is not None and last > steps:
        raise ValueError(
            f"sampler.steps={steps}: {type(detector).__name__} watches the first {last} steps; take as many at least"
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


def _at_start(model: Model, detectors: Mapping[str, Detector], wanted: Mapping[str, tuple], s0: float) -> list[str]:
    """The detectors that look at pure noise, where a pipeline's first step shows it.

    Raises:
        ValueError: for a look elsewhere, or at both predictions where the pipeline makes one.
    """
    names = [name for name, (noise, _) in wanted.items() if noise]
    for name in names:
        if set(wanted[name][0]) != {0} or (detectors[name].needs_prompts and s0 == 1):
            raise ValueError(
                f"{name} asks more of the network than the steps of a {type(model.pipeline).__name__} show at s0={s0}"
            )
    return names


def _looks(model, scheduler, seeds, prompts, s0, steps, both) -> Callable[[int], Step]:
    """Pure noise seen at a place of the schedule; `both`: also without the condition, where there is one."""
    plan = own_scheduler(model, scheduler, steps)
    x_T = first_noise(model, [torch.Generator().manual_seed(seed) for seed in seeds])
    condition = uncond = None
    if prompts is not None:
        condition, uncond = model.encode(prompts), model.encode([None] * len(seeds)) if both else None

    def at(place: int) -> Step:
        timestep = plan.timesteps[place]
        noise = x_T / noise_level(plan, timestep)[1].to(x_T)  # the scheduler's own view of x_T
        return look(model, plan, noise, timestep, condition, uncond, s0, seeds)[0]

    return at


class _Clock:
    """Times a call, waiting for the device to be done."""

    def __init__(self, device: torch.device):
        self.wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)

    def now(self) -> float:
        self.wait()
        return time.perf_counter()

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, float]:
        start = self.now()
        value = function()
        return value, self.now() - start
