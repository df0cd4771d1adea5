"""What a scheduler of diffusers knows of a step: noise level, variance-preserving view, clean sample."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from amg.parameterization import to_x0

VARIANCE_PRESERVING = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""x = √ᾱ x_0 + √(1−ᾱ) ε."""
VARIANCE_EXPLODING = ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler")
"""x = x_0 + σ ε; with ᾱ = 1/(1+σ²), √ᾱ x is the variance-preserving view, which is also what the network is fed."""
SEVERAL_CALLS = (
    "DPMSolverSDEScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
"""They look at the network twice to make one step, the second time at a point that is on no chain."""

SMALLEST_ALPHA_BAR = 1e-5
"""Schedules of zero terminal SNR begin at ᾱ = 0, where ε says nothing of x_0: seen from here, all is finite.

It is below what G_sim needs, so that G_sim rests there, and below the linear schedule's last ᾱ, 4e-5.
"""


def check(scheduler: Any) -> None:
    """Refuses schedulers whose steps cannot be seen one by one.

    Raises:
        ValueError: naming the scheduler and those that serve.
    """
    name = type(scheduler).__name__
    serve = "use DDIM, DDPM, PNDM, DPM-Solver++, UniPC, DEIS, Euler or LMS"
    if name in SEVERAL_CALLS or (name == "PNDMScheduler" and not scheduler.config.skip_prk_steps):
        raise ValueError(f"{name} calls the network more than once a step: {serve}")
    if name not in VARIANCE_PRESERVING + VARIANCE_EXPLODING:
        raise ValueError(f"{name} is untested: {serve}")
    if option(scheduler, "use_flow_sigmas"):
        raise ValueError(f"{name} with use_flow_sigmas is untested: {serve}")


def noise_level(scheduler: Any, timestep: Tensor | int | float) -> tuple[Tensor, Tensor]:
    """ᾱ_t where the scheduler stands, and the factor from its sample to the variance-preserving x_t.

    To be asked before `scheduler.step`, which moves the scheduler on.

    Returns:
        ᾱ_t in [1e-5, 1] and the factor (1 for variance-preserving schedulers), two numbers on the CPU.
    """
    if hasattr(scheduler, "step_index") and hasattr(scheduler, "sigmas"):
        index = scheduler.step_index
        if index is None:  # before the first step
            begin = scheduler.begin_index
            index = scheduler.index_for_timestep(timestep) if begin is None else begin
        return _level(scheduler, index)
    alpha_bar = scheduler.alphas_cumprod[int(timestep)].cpu()
    return alpha_bar.clamp(min=SMALLEST_ALPHA_BAR), torch.ones(())


def next_scale(scheduler: Any) -> Tensor:
    """The factor of `noise_level` for the sample that `scheduler.step` has just returned."""
    if type(scheduler).__name__ in VARIANCE_EXPLODING:
        return _level(scheduler, scheduler.step_index)[1]
    return torch.ones(())


def _level(scheduler: Any, index: int) -> tuple[Tensor, Tensor]:
    alpha_bar = 1 / (1 + scheduler.sigmas[index].cpu().double() ** 2)
    expanding = type(scheduler).__name__ in VARIANCE_EXPLODING
    return alpha_bar.clamp(min=SMALLEST_ALPHA_BAR), alpha_bar.sqrt() if expanding else torch.ones(())


def fraction(scheduler: Any, timestep: Tensor | int | float) -> float:
    """t in [0, 1], 1 being pure noise."""
    return float(timestep) / (scheduler.config.num_train_timesteps - 1)


def clean_sample(output: Tensor, x_t: Tensor, alpha_bar: Tensor, scheduler: Any) -> Tensor:
    """x̂0 as the scheduler uses it (Eq. 12): clipped, or thresholded, where it does so."""
    x0 = to_x0(output, x_t, alpha_bar, scheduler.config.prediction_type)
    if option(scheduler, "thresholding"):
        return scheduler._threshold_sample(x0)
    limit = clip(scheduler)
    return x0 if limit is None else x0.clamp(-limit, limit)


def clip(scheduler: Any) -> float | None:
    """The scheduler clips x̂0 to [−clip, clip]; None where it does not."""
    return scheduler.config.clip_sample_range if option(scheduler, "clip_sample") else None


def option(scheduler: Any, name: str) -> Any:
    """An option that this class of scheduler acts on, else None: `from_config` also keeps those of other classes."""
    return scheduler.config.get(name) if name in inspect.signature(type(scheduler).__init__).parameters else None
