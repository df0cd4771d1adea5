"""One call of a guarded pipeline: hooks on its denoiser and its scheduler's step, for the length of the call."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amg import schedule
from amg.guidance.base import Guidance, flat, preparers
from amg.models.latents import LatentDecoder, decoder_at
from amg.sampling.families import family_of
from amg.sampling.recorded_call import IN_USE, Records, cfg_scale, conditioned, conditions
from amg.step import Asked, Start, Step, guide, report_unguarded, shift, variance_preserving, view


class GuardedCall:
    """One guarded call."""

    def __init__(self, guarded: Any, seeds: Seeds, prompts: list[str] | None, arguments: dict[str, Any]):
        self.pipe, self.guidance, self.on_step = guarded.pipe, guarded.guidance, guarded.on_step
        self.seeds, self.arguments, self.told = seeds, arguments, guarded._told
        self.family = family_of(self.pipe)
        self.decoder = guarded.decoder
        self.full_decode = LatentDecoder(self.pipe.vae) if self.family.latents else lambda x0: x0
        self.records = Records(self.pipe, self.family, arguments, prompts)
        self.state = None
        self.finite: Tensor | None = None
        self.begun = False
        self.prepared: dict[bool, dict[str, Tensor]] | None = None
        self.first: Tensor | None = None
        self.x_prev: Tensor | None = None
        """The samples after the last step, (B, C, h, w)."""
        self.guided: Tensor | None = None

    def steps_guided(self) -> list[int | None]:
        """Steps on which each sample was guided; None where the guidance does not say."""
        if self.guided is not None:
            return self.guided.tolist()
        return [0 if type(self.guidance) is Guidance else None] * len(self.x_prev)

    @contextmanager
    def watch(self) -> Iterator[None]:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        original = scheduler.step
        before = vars(scheduler).get("step")
        denoiser = self.records.denoiser
        network = getattr(denoiser, "_orig_mod", denoiser)  # of a compiled one
        if vars(network).setdefault("_guarded_by", self) is not self:  # one operation, safe among threads
            raise RuntimeError(IN_USE)
        if hasattr(original, "guarded_by"):
            del vars(network)["_guarded_by"]
            raise RuntimeError("another call uses this scheduler: one at a time")

        @functools.wraps(original)  # pipelines read its signature for `eta` and `generator`
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("per_token_timesteps") is not None:
                raise ValueError(f"{type(scheduler).__name__}: per_token_timesteps have no common noise level")
            if self.first is not None:
                scale = schedule.noise_level(scheduler, timestep)[1].to(self.first)
                sample, self.first = self.family.pack(self.first / scale).to(sample), None
            edited, seen, eps = self.guide(model_output, timestep, sample)
            return self.shift(seen, eps, original(edited, timestep, sample, *args, **kwargs))

        step.guarded_by = self
        modules = [denoiser, *([pipe.vae] if hasattr(pipe, "vae") else [])]
        weights = (weight for module in modules for weight in module.parameters())
        trained = [weight for weight in weights if weight.requires_grad and not weight.is_inference()]
        hooks = (
            denoiser.register_forward_pre_hook(self.begin, with_kwargs=True),
            denoiser.register_forward_pre_hook(self.edit, with_kwargs=True),
            denoiser.register_forward_pre_hook(self.records.announce, with_kwargs=True),
            denoiser.register_forward_hook(self.records.note, with_kwargs=True),
        )
        try:
            scheduler.step = step
            for weight in trained:  # gradients are wanted for the samples alone
                weight.requires_grad_(False)
            with _attached(self.guidance, pipe, self.records.asked):
                yield
            if self.finite is not None:
                report_unguarded(self.finite)
        finally:
            del vars(network)["_guarded_by"]
            for hook in hooks:
                hook.remove()
            if before is None:
                vars(scheduler).pop("step", None)
            else:
                scheduler.step = before
            for weight in trained:
                weight.requires_grad_(True)

    def begin(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """The hook before the first call of the denoiser: refuses what could not be done at a later step; prepares."""
        if self.begun:
            return
        self.begun = True
        with_cfg = self.records.with_cfg
        for guidance in flat(self.guidance):
            if getattr(guidance, "needs_cfg", False) and not with_cfg:
                raise ValueError(f"{type(guidance).__name__} works on classifier-free guidance: set guidance_scale > 1")
            if getattr(guidance, "embeds_captions", False) and with_cfg:
                self.records.require_text_encoder()
            lost = getattr(guidance, "lost_without_cfg", "")
            if lost and not with_cfg and self.family.encoded and lost not in self.told:
                self.told.add(lost)
                warnings.warn(f"{type(self.pipe).__name__} is sampled without CFG: {lost}", stacklevel=2)
        if preparers(self.guidance):
            self.prepare(self.records.by_name(args, kwargs))

    @torch.no_grad()
    def prepare(self, arguments: dict[str, Any]) -> None:
        """`guidance.prepare_null` and `prepare`, given the arguments of the first call of the denoiser.

        What they return is fed to the denoiser from then on in the place of what the pipeline feeds it.
        """
        pipe, records, family, scheduler = self.pipe, self.records, self.family, self.pipe.scheduler
        (method, *_), branches = preparers(self.guidance), records.branches
        if family.calls == 2 and records.with_cfg:
            raise ValueError(f"{method} edits embeddings, and {type(pipe).__name__} makes its two predictions in turn")
        if "down_block_additional_residuals" in arguments:
            raise ValueError(f"{method} edits embeddings, and {type(pipe).__name__} has a ControlNet")
        begin = getattr(scheduler, "begin_index", None) or 0
        timestep = arguments["timestep"] if family.denoiser == "unet" else scheduler.timesteps[begin]
        scale = schedule.network_scale(scheduler, timestep)
        fed = records.fed(arguments)
        fed = fed[: len(fed) // len(branches)]
        x_T = family.unpack(fed[:, : pipe.vae.config.latent_channels] if fed.ndim == 4 else fed, arguments)
        x_T = x_T if scale == 1 else x_T / scale.to(x_T)
        alpha_bar = schedule.noise_level(scheduler, timestep)[0].to(
            x_T.device, torch.promote_types(x_T.dtype, torch.float32)
        )

        def predict(x: Tensor, condition: dict[str, Tensor]) -> Tensor:
            output = family.unpack(records.predict(arguments, family.pack(x * scale.to(x)), condition), arguments)
            return schedule.to_eps(output, x, alpha_bar.expand(len(x)), schedule.prediction_type(scheduler))

        told, seeds = conditions(family, arguments, branches), self.seeds(len(x_T))
        null = self.guidance.prepare_null(pipe, told.get(False), seeds) if records.with_cfg else None
        start = Start(null, predict)
        condition, first = self.guidance.prepare(pipe, records.prompts, told[True], x_T, seeds, start)
        self.prepared, self.first = {False: null, True: condition}, None if first is x_T else first
        self.scale = scale

    def edit(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The hook that feeds the denoiser what was prepared."""
        if self.prepared is None or self.records.own:
            return None
        arguments = self.records.by_name(args, kwargs)
        parts = [self.prepared[branch] for branch in self.records.branches]
        arguments = conditioned(arguments, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        if self.first is not None:
            arguments = self.records.place(arguments, self.family.pack(self.first * self.scale.to(self.first)))
        return (), arguments

    @torch.no_grad()
    def guide(self, model_output: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor, Step, Tensor]:
        """The prediction that the scheduler is to use, the step as the guidance saw it, and its ε."""
        scheduler, family, records, channels = self.pipe.scheduler, self.family, self.records, sample.shape[1]
        output, variance = model_output.split([channels, model_output.shape[1] - channels], dim=1)
        scale = schedule.network_scale(scheduler, timestep)
        x_t, alpha_bar = variance_preserving(scheduler, timestep, records.unpack(sample))

        def fed(x: Tensor) -> Tensor:
            return x if scale == 1 else x * scale.to(x)

        record = records.take(fed(x_t))
        branches, s0 = None, 1.0
        if record.with_cfg:
            branches = record.branch(False), record.branch(True)
            s0 = family.s0(self.pipe, self.arguments)
            s0 = cfg_scale(output, s0, *branches, family.combine(*branches, s0, self.arguments))
            branches = tuple(records.unpack(branch) for branch in branches)

        def predict(x: Tensor, rows: Tensor) -> Tensor:
            value, cond = records.again(record, rows, fed(x))
            return records.unpack(value if cond is None else family.combine(value, cond, s0, self.arguments))

        unpacked = records.unpack(output)
        step = view(
            scheduler,
            timestep,
            x_t,
            alpha_bar,
            output=unpacked,
            branches=branches,
            variance=variance if variance.shape[1] else None,
            s0=s0,
            seeds=self.seeds(len(x_t)),
            denoise=lambda rows, captions: records.unpack(records.repeat(record, rows, captions)),
            predict=predict,
            decode=decoder_at(self.decoder, alpha_bar),
        )
        self.finite = step.finite if self.finite is None else self.finite & step.finite
        edited, eps, self.state = guide(self.guidance, step, self.state, unpacked, scheduler)
        kept = self.guidance.record(self.state) if isinstance(self.guidance, Guidance) else {}
        if "guided" in kept:
            self.guided = kept["guided"].int() + (0 if self.guided is None else self.guided)
        if self.on_step is not None:
            self.on_step(step, self.state)
        output = output if edited is unpacked else family.pack(edited)
        return torch.cat([output, variance], dim=1) if variance.shape[1] else output, step, eps

    @torch.no_grad()
    def shift(self, step: Step, eps: Tensor, result: Any) -> Any:
        """Adds the guidance's shift of x_{t−1} to the scheduler's result."""
        before = result[0] if isinstance(result, tuple) else result.prev_sample
        x_prev = self.records.unpack(before)
        shifted = self.x_prev = shift(self.guidance, step, eps, self.state, x_prev, self.pipe.scheduler)
        if shifted is x_prev:
            return result
        shifted = self.family.pack(shifted)
        if isinstance(result, tuple):
            return (shifted, *result[1:])
        result.prev_sample = shifted
        return result


class Seeds:
    """seeds(n): one per row, from the generators of a call."""

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None):
        self.generator = generator

    def __call__(self, n: int, draw: bool = False) -> tuple[int, ...]:
        """Seeds of n rows.

        Args:
            draw: takes other ones at each call where no generator was given, as the images themselves are.
        """
        if isinstance(self.generator, (list, tuple)) and len(self.generator) == n:
            return tuple(generator.initial_seed() for generator in self.generator)
        if draw and self.generator is None:
            return tuple(torch.randint(2**63 - 1, (n,)).tolist())
        first = self.generator[0] if isinstance(self.generator, (list, tuple)) else self.generator
        seed = torch.initial_seed() if first is None else first.initial_seed()
        return tuple((seed + i) % 2**63 for i in range(n))


@contextmanager
def _attached(guidance: Guidance, pipe: Any, asked: Asked) -> Iterator[None]:
    attach = getattr(guidance, "attach", None)  # a plain function serves as a guidance
    if attach is None:
        yield
        return
    with attach(pipe, asked):
        yield
