"""Any guidance inside a pipeline of diffusers: `guard(pipe, guidance)`."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amg import schedule
from amg.guidance.base import Guidance, flat, rewriters
from amg.models.latents import LatentDecoder
from amg.sampling.families import family_of
from amg.sampling.recorded_call import IN_USE, Records, cfg_scale
from amg.step import Asked, Step, guide, report_unguarded, shift, variance_preserving, view


def guard(pipe: Any, guidance: Guidance, on_step: Callable[[Step, Any], None] | None = None) -> GuardedPipeline:
    """A pipeline of diffusers under a guidance: the same call, the same output, its attributes at hand.

        guarded = guard(pipe, AntiMemorizationGuidance(similarity, threshold, c1=6.0, c2=10.0, c3=100.0))
        images = guarded("a cat", num_inference_steps=50).images

    For the length of one call the denoiser is watched by a forward hook and `pipe.scheduler.step` is wrapped, so that
    the guidance edits the noise prediction after CFG and before the step. Both are undone whatever happens. Where the
    guidance changes nothing the output is that of the bare pipeline, bit by bit. Samples that become NaN or infinite
    are passed on as they are; a warning at the end counts them.

    Args:
        pipe: an instance of a class in `families.FAMILIES`, with a scheduler that calls the network once a step.
        guidance: it may rewrite prompts, edit predictions, shift x_{t−1} and attach to the pipe; a method that edits
            embeddings or the initial noise is refused (use `amg.sample`).
        on_step: sees each step and the guidance's state.
    Raises:
        ValueError: for an untested pipeline, scheduler or guidance, by name. Before the first step of a call: for a
            method that rewrites prompts where only embeddings are given, or that works on CFG where there is none; for
            G_dup where the text encoder was freed; for weights loaded under `torch.inference_mode` where a gradient
            passes them.
        RuntimeError: in a call, where another call uses the same denoiser or scheduler.

    In img2img and inpainting the user's own image is in x̂0. Without CFG there is no second prediction: G_spe and G_dup
    do nothing, and a warning says so once. Seeds come from the generators passed to the call: each one's
    `initial_seed()`, or that of a single one plus the row.
    """
    return GuardedPipeline(pipe, guidance, on_step)


class GuardedPipeline:
    """A diffusers pipeline whose calls run under a guidance. All other attributes are the pipeline's own.

    They are read from the pipeline and set on it. `pipe`, `guidance` and `on_step` cannot be replaced; `components` is
    refused, since a pipeline made of them, e.g. by `from_pipe`, would be unguarded.
    """

    def __init__(self, pipe: Any, guidance: Guidance, on_step: Callable[[Step, Any], None] | None = None):
        # `__setattr__` writes to the pipeline; these three are the guard's own
        vars(self).update(pipe=pipe, guidance=guidance, on_step=on_step, _told=set())
        self._check()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own call."""
        self._check()
        arguments = inspect.signature(self.pipe.__call__).bind(*args, **kwargs)
        seeds = _Seeds(arguments.arguments.get("generator"))
        prompts = self._rewrite(arguments.arguments, seeds)
        given = arguments.args, arguments.kwargs
        arguments.apply_defaults()
        for name in family_of(self.pipe).refuses:
            if arguments.arguments.get(name) is not None:
                raise ValueError(f"guard does not follow {name} of {type(self.pipe).__name__}: leave it out")
        with _Call(self, seeds, prompts, arguments.arguments).watch():
            return self.pipe(*given[0], **given[1])

    def to(self, *args: Any, **kwargs: Any) -> GuardedPipeline:
        """Moves the pipeline; still guarded."""
        self.pipe.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("pipe", "guidance", "on_step", "_told"):  # not there yet, e.g. while unpickled
            raise AttributeError(name)
        if name == "components":  # no AttributeError: hasattr would hide it
            raise ValueError("a pipeline made of a guarded one is unguarded: make it of `.pipe`, then guard it")
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise AttributeError(f"{name} of a guarded pipeline cannot be replaced: make a new guard")
        setattr(self.pipe, name, value)

    def __repr__(self) -> str:
        return f"guard({type(self.pipe).__name__}, {type(self.guidance).__name__})"

    def _check(self) -> None:
        name, family = type(self.pipe).__name__, family_of(self.pipe)
        schedule.check(self.pipe.scheduler)
        for guidance in flat(self.guidance):
            if not isinstance(guidance, Guidance):  # a plain function serves as a guidance
                continue
            method = type(guidance).__name__
            if guidance.needs_prompts and not family.encoded:
                raise ValueError(f"{method} works on prompts, and {name} has none")
            if guidance.needs_attention and family.denoiser != "unet":
                raise ValueError(f"{method} edits the cross-attention of a U-Net, and {name} has none")
            if type(guidance).prepare is not Guidance.prepare:
                raise ValueError(
                    f"{method} edits embeddings or the first noise, which guard cannot reach: use amg.sample"
                )
        if getattr(self.pipe, "_all_hooks", None):
            warnings.warn("CPU offload moves the denoiser and the VAE at every guarded step: slow", stacklevel=3)

    def _rewrite(self, arguments: dict[str, Any], seeds: _Seeds) -> list[str] | None:
        """`guidance.prompts`, where the call has prompts in words; one per image.

        Raises:
            ValueError: where a method rewrites prompts and the call has none in words.
        """
        names = rewriters(self.guidance)
        if arguments.get("prompt") is None:
            if names:
                raise ValueError(f"{names[0]} rewrites prompts in words: give prompt=")
            return None
        each = arguments.get("num_images_per_prompt") or 1
        rewritten = {}
        for name in ("prompt", "prompt_2", "prompt_3"):  # for each text encoder its own
            prompt = arguments.get(name)
            if prompt is not None:
                prompts = [prompt] if isinstance(prompt, str) else list(prompt)
                if names:
                    prompts = self.guidance.prompts(prompts, seeds(each * len(prompts))[::each])
                    arguments[name] = prompts[0] if isinstance(prompt, str) else prompts
                rewritten[name] = prompts
        return [prompt for prompt in rewritten["prompt"] for _ in range(each)]


class _Call:
    """One guarded call."""

    def __init__(self, guarded: GuardedPipeline, seeds: _Seeds, prompts: list[str] | None, arguments: dict[str, Any]):
        self.pipe, self.guidance, self.on_step = guarded.pipe, guarded.guidance, guarded.on_step
        self.seeds, self.arguments, self.told = seeds, arguments, guarded._told
        self.family = family_of(self.pipe)
        self.decode = LatentDecoder(self.pipe.vae) if self.family.latents else lambda x0: x0
        self.records = Records(self.pipe, self.family, arguments, prompts)
        self.state = None
        self.finite: Tensor | None = None
        self.begun = False

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
            edited, seen, eps = self.guide(model_output, timestep, sample)
            return self.shift(seen, eps, original(edited, timestep, sample, *args, **kwargs))

        step.guarded_by = self
        modules = [denoiser, *([pipe.vae] if hasattr(pipe, "vae") else [])]
        weights = (weight for module in modules for weight in module.parameters())
        trained = [weight for weight in weights if weight.requires_grad and not weight.is_inference()]
        hooks = (
            denoiser.register_forward_pre_hook(self.begin),
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

    def begin(self, module: Any, args: tuple) -> None:
        """The hook before the first call of the denoiser: refuses what the guidance could not do at a later step."""
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
            branches, s0 = (record.branch(False), record.branch(True)), family.scale(self.arguments)
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
            decode=self.decode,
        )
        self.finite = step.finite if self.finite is None else self.finite & step.finite
        edited, eps, self.state = guide(self.guidance, step, self.state, unpacked, scheduler)
        if self.on_step is not None:
            self.on_step(step, self.state)
        output = output if edited is unpacked else family.pack(edited)
        return torch.cat([output, variance], dim=1) if variance.shape[1] else output, step, eps

    @torch.no_grad()
    def shift(self, step: Step, eps: Tensor, result: Any) -> Any:
        """What the scheduler returned, with the guidance's shift of x_{t−1}."""
        before = result[0] if isinstance(result, tuple) else result.prev_sample
        x_prev = self.records.unpack(before)
        shifted = shift(self.guidance, step, eps, self.state, x_prev, self.pipe.scheduler)
        if shifted is x_prev:
            return result
        shifted = self.family.pack(shifted)
        if isinstance(result, tuple):
            return (shifted, *result[1:])
        result.prev_sample = shifted
        return result


class _Seeds:
    """seeds(n): one per row, from the generators of a call."""

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None):
        self.generator = generator

    def __call__(self, n: int) -> tuple[int, ...]:
        if isinstance(self.generator, (list, tuple)) and len(self.generator) == n:
            return tuple(generator.initial_seed() for generator in self.generator)
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
