"""The sampling loop. It reads like the algorithm box: predict, guide, step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.models.base import Condition, Model, join
from amg.parameterization import add_eps, to_eps
from amg.posterior import posterior_variance
from amg.schedule import clean_sample, clip, fraction, noise_level, option
from amg.step import Start, Step


@torch.no_grad()
def sample(
    model: Model,
    seeds: Sequence[int],
    condition: Condition | None = None,
    guidance: Guidance | None = None,
    *,
    prompts: Sequence[str | int] | None = None,
    s0: float = 1.0,
    scheduler: type | None = None,
    steps: int = 50,
    eta: float = 0.0,
    on_step: Callable[[Step, Any], None] | None = None,
) -> Tensor:
    """Draws one sample per seed.

    Args:
        model: see `amg.models.base.Model`.
        seeds: B integers; row i draws from its own CPU generator alone, so a sample does not depend on its batch.
        condition: what `model.encode` returned, or None.
        guidance: what changes the noise prediction; None samples plainly.
        prompts: B prompts or labels, encoded here after `guidance.prompts`; instead of `condition`.
        s0: CFG scale, >= 0 (Eq. 7): 1 is plain conditional and costs one network row per sample, all else two.
        scheduler: a diffusers scheduler class; the model's own where None.
        steps: network calls per sample.
        eta: DDIM's share of ancestral noise, in [0, 1].
        on_step: sees each step and the guidance's state.
    Returns:
        x_0, (B, C, H, W), latents or pixels.
    """
    guidance = guidance or Guidance()
    if prompts is not None and len(prompts) != len(seeds):
        raise ValueError(f"got {len(prompts)} prompts and {len(seeds)} seeds: sample takes one prompt per seed")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = _scheduler(model, scheduler, steps)
    if prompts is not None:
        if all(isinstance(prompt, str) for prompt in prompts):
            prompts = guidance.prompts(prompts, seeds)
        condition = model.encode(prompts)
    x_t = torch.stack([torch.randn(model.shape, generator=g, dtype=model.dtype) for g in generators]).to(model.device)
    uncond = None
    if condition is not None and s0 != 1:
        uncond = guidance.prepare_null(model, model.encode([None] * len(seeds)), seeds)
    start = Start(uncond, _predict(model, scheduler, scheduler.timesteps[0]))
    condition, x_t = guidance.prepare(model, prompts, condition, x_t, seeds, start)
    options = _step_options(scheduler, generators, eta)
    state = None
    with guidance.attach(model):
        for timestep in scheduler.timesteps:
            step, output, variance = look(model, scheduler, x_t, timestep, condition, uncond, s0, seeds)
            eps, state = guidance(step, state)
            if eps is not step.eps:  # untouched rows receive + 0 and keep their bits
                output = add_eps(output, eps - step.eps, step.alpha_bar, scheduler.config.prediction_type)
            if variance is not None:
                output = torch.cat([output, variance], dim=1)
            x_prev = scheduler.step(output, timestep, x_t, **options).prev_sample
            shift = guidance.shift(step, eps, state, x_prev)
            x_t = x_prev if shift is None else x_prev + shift
            if on_step is not None:
                on_step(step, state)
    return x_t


def look(
    model: Model,
    scheduler: Any,
    x_t: Tensor,
    timestep: Tensor,
    condition: Condition | None,
    uncond: Condition | None,
    s0: float,
    seeds: Sequence[int],
) -> tuple[Step, Tensor, Tensor | None]:
    """One network call: the step that a guidance sees, the output after CFG, and the variance channels if used."""
    kind = scheduler.config.prediction_type
    precise = _precise(x_t)
    alpha_bar = noise_level(scheduler, timestep)[0].to(**precise).expand(len(x_t))
    if uncond is None:
        output, variance = model(x_t, timestep, condition)
        eps = eps_uncond = to_eps(output, x_t, alpha_bar, kind)
        eps_cond = None
    else:
        both, variance = model(torch.cat([x_t, x_t]), timestep, join(uncond, condition))
        output_uncond, output_cond = both.chunk(2)
        variance = None if variance is None else variance.chunk(2)[1]
        output = output_uncond + s0 * (output_cond - output_uncond)  # Eq. 7
        eps, eps_uncond, eps_cond = (
            to_eps(value, x_t, alpha_bar, kind) for value in (output, output_uncond, output_cond)
        )

    predict = _predict(model, scheduler, timestep)

    def denoise(rows: Tensor, captions: Sequence[str]) -> Tensor:
        return predict(x_t[rows], model.encode(list(captions)))

    learned = variance is not None and str(option(scheduler, "variance_type")).startswith("learned")
    step = Step(
        x_t=x_t,
        t=torch.full((len(x_t),), fraction(scheduler, timestep), **precise),
        timestep=timestep,
        alpha_bar=alpha_bar,
        eps=eps,
        eps_uncond=eps_uncond,
        eps_cond=eps_cond,
        s0=s0,
        seeds=tuple(seeds),
        x0=clean_sample(output, x_t, alpha_bar, scheduler),
        denoise=denoise,
        decode=model.decode,
        variance=posterior_variance(scheduler, timestep, variance) if learned else None,
        clip=clip(scheduler),
    )
    return step, output, variance if learned else None


def _predict(model: Model, scheduler: Any, timestep: Tensor) -> Callable[[Tensor, Condition | None], Tensor]:
    """ε(x, timestep, condition) as a function of the other two."""
    alpha_bar = noise_level(scheduler, timestep)[0]

    def predict(x: Tensor, condition: Condition | None) -> Tensor:
        value, _ = model(x, timestep, condition)
        return to_eps(value, x, alpha_bar.to(**_precise(x)).expand(len(x)), scheduler.config.prediction_type)

    return predict


def _precise(x: Tensor) -> dict[str, Any]:
    """Device and dtype of noise levels: ᾱ_T underflows in half precision."""
    return {"device": x.device, "dtype": torch.promote_types(x.dtype, torch.float32)}


def _scheduler(model: Model, kind: type | None, steps: int) -> Any:
    """A scheduler of our own: schedulers keep state from step to step."""
    scheduler = (kind or type(model.scheduler)).from_config(model.scheduler.config)
    name = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod") or float(scheduler.init_noise_sigma) != 1:
        raise ValueError(
            f"{name} is not variance-preserving: sample with DDPM, DDIM or DPM-Solver, or guard a pipeline"
        )
    scheduler.set_timesteps(steps)
    if scheduler.order != 1 or len(scheduler.timesteps) != steps:
        raise ValueError(f"{name} calls the network more than once a step: sample with DDPM, DDIM or DPM-Solver")
    return scheduler


def _step_options(scheduler: Any, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generators, "eta": eta}
    return {name: value for name, value in options.items() if name in accepted}
