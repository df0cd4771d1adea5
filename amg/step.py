"""One sampling step as a guidance sees it; `amg.sampling.sample` and `amg.sampling.guard` build it alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amg.schedule import (
    add_eps,
    clean_sample,
    clip,
    fraction,
    next_scale,
    noise_level,
    option,
    posterior_variance,
    prediction_type,
    to_eps,
)
from amg.tensors import broadcast, finite_rows


@dataclass(frozen=True)
class Start:
    """Facts that a guidance may see before the first step, beside prompts, condition and first noise."""

    null: Any
    """The null condition of classifier-free guidance, B rows; None where there is no condition or s0 = 1."""
    predict: Callable[[Tensor, Any], Tensor]
    """predict(x, condition) -> ε(x, T, condition), (R, C, H, W), for R rows of both; T is the first timestep.

    One network call, differentiable in x and in a condition of embeddings, in ε whatever the network predicts.
    """


@dataclass(frozen=True)
class Step:
    """One sampling step of B images, in the variance-preserving view x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε.

    `amg.sampling.sample` and `amg.sampling.pipeline.guard` both build it, so one guidance serves both.
    """

    x_t: Tensor
    """Noised sample, (B, C, H, W)."""
    t: Tensor
    """Fraction of the schedule, (B,) in [0, 1]; 1 is pure noise."""
    timestep: Tensor | int
    """The scheduler's own timestep."""
    alpha_bar: Tensor
    """ᾱ_t, (B,) in (0, 1)."""
    eps: Tensor
    """Noise prediction after classifier-free guidance, (B, C, H, W)."""
    eps_uncond: Tensor
    """Unconditional prediction; `eps` itself where there is no condition or no CFG."""
    eps_cond: Tensor | None
    """Conditional prediction; None where there is no condition or no CFG."""
    s0: float
    """CFG scale of Eq. 7; 1 is plain conditional."""
    seeds: tuple[int, ...]
    """B seeds; whatever a guidance draws for row i must come from seeds[i] alone."""
    x0: Tensor
    """Predicted clean sample as the scheduler uses it (Eq. 12, clipped where the scheduler clips)."""
    denoise: Callable[[Tensor, Sequence[str]], Tensor]
    """denoise(rows, captions) -> eps(x_t[rows], captions) without CFG: one more network call, for those rows only."""
    decode: Callable[[Tensor], Tensor]
    """decode(x0) -> images, (B, 3, H, W) in [-1, 1]."""
    predict: Callable[[Tensor, Tensor], Tensor] | None = None
    """predict(x_t, rows) -> eps after CFG of samples `rows` at another x_t, (R, C, H, W); differentiable in it."""
    variance: Tensor | None = None
    """Σ of the posterior, (B, C, H, W), for models that learn it."""
    clip: float | None = None
    """The scheduler clips x̂0 to [−clip, clip]; None where it does not."""

    @property
    def finite(self) -> Tensor:
        """Rows of finite x_t and ε, (B,) bool; no guidance edits the other rows."""
        return finite_rows(self.x_t, self.eps)

    def predict_x0(self, eps: Tensor) -> Tensor:
        """x̂0 = (x_t − √(1−ᾱ_t) ε) / √ᾱ_t (Eq. 12), unclipped."""
        alpha_bar = broadcast(self.alpha_bar)
        return (self.x_t - (1 - alpha_bar).sqrt().to(eps) * eps) / alpha_bar.sqrt().to(eps)

    def with_eps(self, eps: Tensor) -> Step:
        """This step with another noise prediction; x̂0 follows it, clipped as before.

        Rows whose prediction is unchanged keep the bits of their x̂0, so that no sample depends on its batch.
        """
        x0 = self.predict_x0(eps)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        changed = (eps != self.eps).flatten(1).any(1)
        return replace(self, eps=eps, x0=torch.where(broadcast(changed), x0, self.x0))


@dataclass
class Asked:
    """Meaning of each row of the network call under way, for hooks attached to the network.

    `sample` and `guard` make one for each trajectory and note every call in it before they make it.
    """

    conditional: tuple[bool, ...] = ()
    """True for a row of the conditional branch."""
    prompts: tuple[str, ...] | None = None
    """The prompt of the row's sample, in both branches; None where it is not known in words."""

    def note(self, samples: int, branches: Sequence[bool], prompts: Sequence[str] | None) -> None:
        """A call with the rows of all samples, once for each branch: (False, True) is [uncond | cond]."""
        self.conditional = tuple(branch for branch in branches for _ in range(samples))
        self.prompts = None if prompts is None else tuple(prompts) * len(branches)


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
    kind = prediction_type(scheduler)
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

    Rows that are not finite keep output and ε, whatever the guidance returned for them.

    Args:
        output: after CFG, what `step` is the view of, (B, C, H, W).
    """
    eps, state = guidance(step, state)
    if eps is not step.eps:  # untouched rows receive + 0 and keep their bits
        edited = add_eps(output, eps - step.eps, step.alpha_bar, prediction_type(scheduler))
        if step.finite.all():
            return edited, eps, state
        finite = broadcast(step.finite)
        output, eps = torch.where(finite, edited, output), torch.where(finite, eps, step.eps)
    return output, eps, state


def shift(guidance: Any, step: Step, eps: Tensor, state: Any, x_prev: Tensor, scheduler: Any) -> Tensor:
    """The scheduler's new sample with the guidance's shift of x_{t−1}; to be asked after `scheduler.step`.

    Args:
        eps, state: what `guide` returned.
        x_prev: as the scheduler made it, (B, C, H, W).
    """
    change_of = getattr(guidance, "shift", None)  # a plain function serves as a guidance
    if change_of is None:
        return x_prev
    scale = next_scale(scheduler).to(x_prev)
    change = change_of(step, eps, state, x_prev if scale == 1 else x_prev * scale)
    return x_prev if change is None else x_prev + change / scale


def report_unguarded(finite: Tensor) -> None:
    """Warns of the samples that left the finite numbers on their way, (B,) bool."""
    if not finite.all():
        rows = ", ".join(map(str, (~finite).nonzero().flatten().tolist()))
        warnings.warn(
            f"{int((~finite).sum())} of {len(finite)} samples became NaN or infinite and were passed on unguarded: "
            f"rows {rows}",
            stacklevel=3,
        )


def _precise(like: Tensor) -> dict[str, Any]:
    return {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
