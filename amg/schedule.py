"""Noise levels, prediction types and clean samples of diffusers' schedulers, in the variance-preserving view."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from amg.tensors import broadcast

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

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

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


def one_call(kind: type) -> None:
    """Refuses a class of schedulers that looks at the network more than once to make a step.

    Raises:
        ValueError: naming those that serve.
    """
    if getattr(kind, "order", 1) != 1:
        raise _several_calls(kind)


def own_scheduler(model: Any, kind: type | None, steps: int) -> Any:
    """A scheduler of our own with its timesteps set: schedulers keep state from step to step.

    Raises:
        ValueError: for one that is not variance-preserving, or that calls the network more than once a step.
    """
    kind = kind or type(model.scheduler)
    one_call(kind)
    scheduler = kind.from_config(model.scheduler.config)
    if not hasattr(scheduler, "alphas_cumprod") or float(scheduler.init_noise_sigma) != 1:
        raise ValueError(
            f"{kind.__name__} is not variance-preserving: sample with DDPM, DDIM or DPM-Solver, or guard a pipeline"
        )
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != steps:
        raise _several_calls(kind)
    return scheduler


def _several_calls(kind: type) -> ValueError:
    return ValueError(f"{kind.__name__} calls the network more than once a step: sample with DDPM, DDIM or DPM-Solver")


def step_options(scheduler: Any, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generators, "eta": eta}
    return {name: value for name, value in options.items() if name in accepted}


def to_eps(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The noise prediction that a network's output stands for.

    Args:
        output: ε, v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho, 2022) or x_0, (B, C, H, W).
        x_t: (B, C, H, W).
        alpha_bar: ᾱ_t in (0, 1), (B,).
        prediction_type: diffusers' name: `epsilon`, `v_prediction` or `sample`.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return signal * output + noise * x_t
    if prediction_type == "sample":
        return (x_t - signal * output) / noise
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def to_x0(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The clean sample that a network's output stands for; exact where the network predicts it."""
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output
    return (x_t - noise * output) / signal


def add_eps(output: Tensor, change: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The output whose ε is larger by `change`, x_t fixed: Δv = Δε / √ᾱ, Δx_0 = −√(1−ᾱ)/√ᾱ Δε.

    At ᾱ = 0 (zero terminal SNR) x_t is noise alone: no output has another ε, and none is changed.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output + change
    inverse = (1 / signal).masked_fill(signal == 0, 0)
    return output + change * (inverse if prediction_type == "v_prediction" else -noise * inverse)


def _roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = broadcast(alpha_bar)
    return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)


def posterior_variance(scheduler: Any, timestep: Tensor | int, channels: Tensor) -> Tensor:
    """The learned variance of one step: log Σ = v log β_t + (1 − v) log β̃_t, v = (channels + 1) / 2.

    β_t and β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t) are those of the scheduler's own, perhaps respaced, timesteps. At the
    last step β̃ is 0; as in improved-diffusion it is replaced by that of the step before.

    Args:
        scheduler: its timesteps are set; variance_type `learned_range`, or `learned` where the channels are Σ itself.
        timestep: one of its timesteps.
        channels: the network's variance channels, (B, C, H, W).
    Returns:
        Σ, (B, C, H, W).
    """
    if scheduler.config.variance_type == "learned":
        return channels
    place = int((scheduler.timesteps == int(timestep)).nonzero()[0])
    beta, _ = _bounds(scheduler, place)
    _, tilde = _bounds(scheduler, min(place, max(len(scheduler.timesteps) - 2, 0)))
    share = (channels + 1) / 2
    return torch.exp(share * beta.log().to(channels) + (1 - share) * tilde.log().to(channels))


def _bounds(scheduler: Any, place: int) -> tuple[Tensor, Tensor]:
    """β and β̃ of the step at that place of the chain, float64."""
    timesteps, one = scheduler.timesteps, torch.ones((), dtype=torch.float64)
    now = scheduler.alphas_cumprod[timesteps[place]].double()
    before = scheduler.alphas_cumprod[timesteps[place + 1]].double() if place + 1 < len(timesteps) else one.to(now)
    beta = 1 - now / before
    return beta, beta * (1 - before) / (1 - now)
