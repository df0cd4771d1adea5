"""One step of a scheduler as a guidance sees it, and back; `amg.sampling.sample` and `amg.pipelines.guard` share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amg.parameterization import add_eps, to_eps
from amg.posterior import posterior_variance
from amg.schedule import clean_sample, clip, fraction, noise_level, option
from amg.step import Step


def variance_preserving(scheduler: Any, timestep: Any, sample: Tensor) -> tuple[Tensor, Tensor]:
    """x_t of a scheduler's sample, (B, C, H, W), and ᾱ_t, (B,); to be asked before `scheduler.step`."""
    alpha_bar, scale = noise_level(scheduler, timestep)
    precise = _precise(sample)  # ᾱ_T underflows in half precision
    x_t = sample * scale.to(**precise).to(sample.dtype) if scale != 1 else sample
    return x_t, alpha_bar.to(**precise).expand(len(sample))


def view(
    scheduler: Any,
    timestep: Any,
    x_t: Tensor,
    alpha_bar: Tensor,
    *,
    output: Tensor,
    branches: tuple[Tensor, Tensor] | None,
    variance: Tensor | None,
    s0: float,
    seeds: Sequence[int],
    denoise: Callable[[Tensor, Sequence[str]], Tensor],
    predict: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> Step:
    """The `Step` of a network's answer.

    Args:
        x_t, alpha_bar: of `variance_preserving`.
        output: after CFG, in the scheduler's prediction type, (B, C, H, W); so are the next and what is called.
        branches: the unconditional and the conditional output; None without CFG.
        variance: the network's variance channels, or None.
        s0: CFG scale of Eq. 7.
        denoise, predict, decode: as `Step`'s, but the first two return outputs.
    """
    kind = scheduler.config.prediction_type
    eps = to_eps(output, x_t, alpha_bar, kind)
    eps_uncond, eps_cond = (eps, None) if branches is None else (to_eps(b, x_t, alpha_bar, kind) for b in branches)
    learned = variance is not None and str(option(scheduler, "variance_type")).startswith("learned")
    return Step(
        x_t=x_t,
        t=torch.full((len(x_t),), fraction(scheduler, timestep), **_precise(x_t)),
        timestep=timestep,
        alpha_bar=alpha_bar,
        eps=eps,
        eps_uncond=eps_uncond,
        eps_cond=eps_cond,
        s0=s0,
        seeds=tuple(seeds),
        x0=clean_sample(output, x_t, alpha_bar, scheduler),
        denoise=lambda rows, captions: to_eps(denoise(rows, captions), x_t[rows], alpha_bar[rows], kind),
        predict=lambda x, rows: to_eps(predict(x, rows), x, alpha_bar[rows], kind),
        decode=decode,
        variance=posterior_variance(scheduler, timestep, variance) if learned else None,
        clip=clip(scheduler),
    )


def guide(
    guidance: Callable[[Step, Any], tuple[Tensor, Any]], step: Step, state: Any, output: Tensor, scheduler: Any
) -> tuple[Tensor, Tensor, Any]:
    """The output that the scheduler is to use, its ε as the guidance returned it, and the guidance's new state.

    Args:
        output: after CFG, what `step` is the view of, (B, C, H, W).
    """
    eps, state = guidance(step, state)
    if eps is not step.eps:  # untouched rows receive + 0 and keep their bits
        output = add_eps(output, eps - step.eps, step.alpha_bar, scheduler.config.prediction_type)
    return output, eps, state


def _precise(like: Tensor) -> dict[str, Any]:
    return {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
