"""The sampling loop. It reads like the algorithm box: predict, guide, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance, rewriters
from amg.models.base import Condition, Model, join, take
from amg.models.latents import Decoder, decoder_at
from amg.sampling.pipeline import sample_pipeline
from amg.schedule import (
    exact_noise_level,
    from_x0,
    is_flow,
    network_scale,
    own_scheduler,
    prediction_type,
    step_options,
    to_eps,
)
from amg.step import Asked, Start, Step, guide, report_unguarded, shift, variance_preserving, view


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
    decoder: Decoder | None = None,
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
        decoder: decodes x̂0 for the guidance, see `amg.sampling.decoders`; the model's own where None.
    Returns:
        x_0, (B, C, H, W), latents or pixels. Samples that became NaN or infinite are unguarded; a warning counts them.
    """
    guidance = guidance or Guidance()
    if prompts is not None and len(prompts) != len(seeds):
        raise ValueError(f"got {len(prompts)} prompts and {len(seeds)} seeds: sample takes one prompt per seed")
    words = prompts if prompts is not None and all(isinstance(prompt, str) for prompt in prompts) else None
    if words is None and (names := rewriters(guidance)):
        raise ValueError(f"{names[0]} rewrites prompts in words: give prompts=")
    if getattr(model, "pipeline", None) is not None:
        return sample_pipeline(
            model,
            seeds,
            prompts,
            guidance,
            s0=s0,
            scheduler=scheduler,
            steps=steps,
            eta=eta,
            on_step=on_step,
            decoder=decoder,
        )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = own_scheduler(model, scheduler, steps)
    if prompts is not None:
        if words is not None:
            prompts = words = guidance.prompts(words, seeds)
        condition = model.encode(prompts)
    x_t = first_noise(model, generators)
    uncond = None
    if condition is not None and s0 != 1:
        uncond = guidance.prepare_null(model, model.encode([None] * len(seeds)), seeds)
    start = Start(uncond, _predict(model, scheduler, scheduler.timesteps[0]))
    condition, x_t = guidance.prepare(model, prompts, condition, x_t, seeds, start)
    options = step_options(scheduler, generators, eta)
    state, asked = None, Asked()
    finite = torch.ones(len(seeds), dtype=torch.bool, device=x_t.device)
    with guidance.attach(model, asked):
        for timestep in scheduler.timesteps:
            step, output, variance = look(
                model, scheduler, x_t, timestep, condition, uncond, s0, seeds, words, asked, decoder
            )
            finite &= step.finite
            output, eps, state = guide(guidance, step, state, output, scheduler)
            if variance is not None:
                output = torch.cat([output, variance], dim=1)
            x_prev = scheduler.step(output, timestep, x_t, **options).prev_sample
            x_t = shift(guidance, step, eps, state, x_prev, scheduler)
            if on_step is not None:
                on_step(step, state)
    report_unguarded(finite)
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
    prompts: Sequence[str] | None = None,
    asked: Asked | None = None,
    decoder: Decoder | None = None,
) -> tuple[Step, Tensor, Tensor | None]:
    """One network call: the step that a guidance sees, the output after CFG, and the variance channels if used."""
    asked = Asked() if asked is None else asked
    network = _network(model, scheduler, timestep)

    def ask(x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        own, null, words = condition, uncond, prompts
        if rows is not None:
            own, null = take(condition, rows), take(uncond, rows)
            words = None if prompts is None else [prompts[i] for i in rows.tolist()]
        if null is None:
            asked.note(len(x), (own is not None,), words)
            output, variance = network(x, own)
            return output, None, variance
        asked.note(len(x), (False, True), words)
        both, variance = network(torch.cat([x, x]), join(null, own))
        output_uncond, output_cond = both.chunk(2)
        output = output_uncond + s0 * (output_cond - output_uncond)  # Eq. 7
        return output, (output_uncond, output_cond), None if variance is None else variance.chunk(2)[1]

    def denoise(rows: Tensor, captions: Sequence[str]) -> Tensor:
        asked.note(len(rows), (True,), captions)
        return network(x_t[rows], model.encode(list(captions)))[0]

    x_t, alpha_bar = variance_preserving(scheduler, timestep, x_t)
    output, branches, variance = ask(x_t)
    step = view(
        scheduler,
        timestep,
        x_t,
        alpha_bar,
        output=output,
        branches=branches,
        variance=variance,
        s0=s0,
        seeds=seeds,
        denoise=denoise,
        predict=lambda x, rows: ask(x, rows)[0],
        decode=model.decode if decoder is None else decoder_at(decoder, alpha_bar),
    )
    return step, output, None if step.variance is None else variance


def first_noise(model: Model, generators: Sequence[torch.Generator]) -> Tensor:
    """x_T, (B, C, H, W): each row from its own CPU generator."""
    return torch.stack([torch.randn(model.shape, generator=g, dtype=model.dtype) for g in generators]).to(model.device)


def _predict(model: Model, scheduler: Any, timestep: Tensor) -> Callable[[Tensor, Condition | None], Tensor]:
    """ε(x, timestep, condition) as a function of the other two."""

    network = _network(model, scheduler, timestep)

    def predict(x: Tensor, condition: Condition | None) -> Tensor:
        value, _ = network(x, condition)
        _, alpha_bar = variance_preserving(scheduler, timestep, x)
        return to_eps(value, x, alpha_bar, prediction_type(scheduler))

    return predict


def _network(
    model: Model, scheduler: Any, timestep: Tensor
) -> Callable[[Tensor, Condition | None], tuple[Tensor, Tensor | None]]:
    """The model at one step as a function of the variance-preserving x_t and a condition; returns what it does.

    One that was not made as a flow is asked by its noise level where the scheduler is one.
    """
    if not is_flow(scheduler) or is_flow(model.scheduler):
        scale = network_scale(scheduler, timestep)
        return lambda x, condition: model(x if scale == 1 else x * scale.to(x), timestep, condition)
    alpha_bar, _ = exact_noise_level(scheduler, timestep)

    def network(x: Tensor, condition: Condition | None) -> tuple[Tensor, None]:
        level = alpha_bar.expand(len(x))
        return from_x0(model.denoise(x, level, condition), x, level, prediction_type(scheduler)), None

    return network
