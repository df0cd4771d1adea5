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
FLOW = "FlowMatchEulerDiscreteScheduler"
"""x = (1−σ) x_0 + σ ε, v = ε − x_0; with k² = (1−σ)² + σ² and ᾱ = (1−σ)²/k², x/k is the variance-preserving view.

The network is fed x itself.
"""
FLOW_SIGMAS = ("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""They step flows too, with use_flow_sigmas and prediction_type=flow_prediction."""
SEVERAL_CALLS = (
    "DPMSolverSDEScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
"""They look at the network twice to make one step, the second time at a point that is on no trajectory."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")

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
    serve = "use DDIM, DDPM, PNDM, DPM-Solver++, UniPC, DEIS, Euler, LMS or, for flows, FlowMatchEuler"
    if name in SEVERAL_CALLS or (name == "PNDMScheduler" and not scheduler.config.skip_prk_steps):
        raise ValueError(f"{name} calls the network more than once a step: {serve}")
    if name not in (*VARIANCE_PRESERVING, *VARIANCE_EXPLODING, FLOW):
        raise ValueError(f"{name} is untested: {serve}")
    if option(scheduler, "use_flow_sigmas") and name not in FLOW_SIGMAS:
        raise ValueError(f"{name} with use_flow_sigmas is untested: {serve}")
    if is_flow(scheduler) != (prediction_type(scheduler) == "flow_prediction"):
        raise ValueError(f"{name}: use_flow_sigmas and prediction_type=flow_prediction go together; set both or none")
    if option(scheduler, "invert_sigmas"):
        raise ValueError(f"{name} with invert_sigmas is untested: {serve}")


def is_flow(scheduler: Any) -> bool:
    """Tells whether the scheduler's samples are (1−σ) x_0 + σ ε."""
    return type(scheduler).__name__ == FLOW or bool(option(scheduler, "use_flow_sigmas"))


def prediction_type(scheduler: Any) -> str:
    """Returns what the scheduler takes a network's output for, one of PREDICTION_TYPES."""
    return option(scheduler, "prediction_type") or "flow_prediction"


def noise_level(scheduler: Any, timestep: Tensor | int | float) -> tuple[Tensor, Tensor]:
    """Returns ᾱ_t where the scheduler stands, and the factor from its sample to the variance-preserving x_t.

    To be asked before `scheduler.step`, which moves the scheduler on.

    Returns:
        ᾱ_t in [1e-5, 1] and the factor (1 for variance-preserving schedulers), two numbers on the CPU.
    """
    alpha_bar, factor = exact_noise_level(scheduler, timestep)
    return alpha_bar.clamp(min=SMALLEST_ALPHA_BAR), factor


def exact_noise_level(scheduler: Any, timestep: Tensor | int | float) -> tuple[Tensor, Tensor]:
    """Returns the same with the exact ᾱ_t, which is 0 at zero terminal SNR and where a flow begins."""
    if hasattr(scheduler, "step_index") and hasattr(scheduler, "sigmas"):
        index = scheduler.step_index
        if index is None:  # before the first step
            begin = scheduler.begin_index
            index = scheduler.index_for_timestep(timestep) if begin is None else begin
        return _level(scheduler, index)
    return scheduler.alphas_cumprod[int(timestep)].cpu(), torch.ones(())


def next_scale(scheduler: Any) -> Tensor:
    """Returns the factor of `noise_level` for the sample that `scheduler.step` has just returned."""
    if type(scheduler).__name__ in VARIANCE_EXPLODING or is_flow(scheduler):
        return _level(scheduler, scheduler.step_index)[1]
    return torch.ones(())


def network_scale(scheduler: Any, timestep: Tensor | int | float) -> Tensor:
    """Returns the factor from the variance-preserving x_t to what the network is fed; asked as `noise_level`."""
    return 1 / noise_level(scheduler, timestep)[1] if is_flow(scheduler) else torch.ones(())


def _level(scheduler: Any, index: int) -> tuple[Tensor, Tensor]:
    sigma = scheduler.sigmas[index].cpu().double()
    if is_flow(scheduler):
        size = torch.hypot(1 - sigma, sigma)
        return ((1 - sigma) / size) ** 2, 1 / size
    alpha_bar = 1 / (1 + sigma**2)
    expanding = type(scheduler).__name__ in VARIANCE_EXPLODING
    return alpha_bar, alpha_bar.sqrt() if expanding else torch.ones(())


def fraction(scheduler: Any, timestep: Tensor | int | float) -> float:
    """Returns t in [0, 1], 1 being pure noise; a flow's is its σ."""
    steps = scheduler.config.num_train_timesteps
    return float(timestep) / (steps if is_flow(scheduler) else steps - 1)


def clean_sample(output: Tensor, x_t: Tensor, alpha_bar: Tensor, scheduler: Any) -> Tensor:
    """x̂0 as the scheduler uses it (Eq. 12): clipped, or thresholded, where it does so."""
    x0 = to_x0(output, x_t, alpha_bar, prediction_type(scheduler))
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

    A model that was not made as a flow can be sampled as one where it answers at any noise level (`Model.denoise`).

    Raises:
        ValueError: for one that is neither variance-preserving nor a flow, that calls the network more than once a
            step, or that asks a network for noise levels it was not trained on.
    """
    kind = kind or type(model.scheduler)
    one_call(kind)
    config, made_as_flow = model.scheduler.config, is_flow(model.scheduler)
    if kind.__name__ == FLOW and not made_as_flow:  # all else is of another schedule
        config = {"num_train_timesteps": config.num_train_timesteps}
    scheduler = kind.from_config(config)
    flow = is_flow(scheduler)
    if not flow and not (hasattr(scheduler, "alphas_cumprod") and float(scheduler.init_noise_sigma) == 1):
        raise ValueError(
            f"{kind.__name__} is not variance-preserving: sample with DDPM, DDIM or DPM-Solver, or guard a pipeline"
        )
    if flow != made_as_flow and (made_as_flow or model.denoise is None):
        raise ValueError(
            f"{kind.__name__} asks {type(model).__name__} for noise levels that it was not trained on: sample it with "
            f"{'FlowMatchEuler (sampler=flow)' if made_as_flow else 'DDPM, DDIM or DPM-Solver'}"
        )
    if option(scheduler, "use_dynamic_shifting"):  # by the size of an image: its pipeline sets the timesteps
        return scheduler
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

    A flow's σ follows from ᾱ: with a = √ᾱ and b = √(1−ᾱ), σ = b/(a+b) and its own sample is x_t/(a+b).

    Args:
        output: ε, v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho, 2022), x_0, or a flow's v = ε − x_0, (B, C, H, W).
        x_t: variance-preserving, (B, C, H, W).
        alpha_bar: ᾱ_t in (0, 1), (B,).
        prediction_type: diffusers' name, one of PREDICTION_TYPES.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return signal * output + noise * x_t
    if prediction_type == "sample":
        return (x_t - signal * output) / noise
    if prediction_type == "flow_prediction":
        return (x_t + signal * output) / (signal + noise)
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def to_x0(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The clean sample that a network's output stands for; exact where the network predicts it."""
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output
    if prediction_type == "flow_prediction":
        return (x_t - noise * output) / (signal + noise)
    return (x_t - noise * output) / signal


def from_x0(x0: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The output that stands for a clean sample at ᾱ_t in [0, 1): the inverse of `to_x0`."""
    signal, noise = _roots(alpha_bar, x0)
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        return (signal * x_t - x0) / noise
    if prediction_type == "flow_prediction":
        return (x_t - (signal + noise) * x0) / noise
    return (x_t - signal * x0) / noise


def add_eps(output: Tensor, change: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The output whose ε is larger by `change`, x_t fixed.

    Δv = Δε / √ᾱ, Δx_0 = −√(1−ᾱ)/√ᾱ Δε, and for a flow Δv = Δε / (1−σ). At ᾱ = 0 (zero terminal SNR) x_t is noise
    alone: no output has another ε, and none is changed.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output + change
    slope = {"v_prediction": 1, "sample": -noise, "flow_prediction": signal + noise}[prediction_type]
    return output + change * (slope / signal).masked_fill(signal == 0, 0)


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
    """β and β̃ of the step at that place of the trajectory, float64."""
    timesteps, one = scheduler.timesteps, torch.ones((), dtype=torch.float64)
    now = scheduler.alphas_cumprod[timesteps[place]].double()
    before = scheduler.alphas_cumprod[timesteps[place + 1]].double() if place + 1 < len(timesteps) else one.to(now)
    beta = 1 - now / before
    return beta, beta * (1 - before) / (1 - now)
