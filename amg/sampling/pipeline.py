"""Any guidance inside a pipeline of diffusers: `guard(pipe, guidance)`."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amg import schedule
from amg.guidance.base import Guidance, flat, preparers, rewriters
from amg.guidance.looks import Looks
from amg.guidance.presets import named_looks
from amg.models.base import Model
from amg.models.latents import Decoder, LatentDecoder, decoder_at
from amg.sampling import on_copy as on_copies
from amg.sampling.decoders import bank_of, decoder_of
from amg.sampling.families import Family, family_of, true_cfg
from amg.sampling.recorded_call import IN_USE, Records, cfg_scale, conditioned, conditions
from amg.similarity.base import Similarity
from amg.step import Asked, Start, Step, guide, report_unguarded, shift, variance_preserving, view


def guard(
    pipe: Any,
    guidance: Guidance,
    on_step: Callable[[Step, Any], None] | None = None,
    *,
    decoder: Any = "auto",
    looks: str | Looks | None = None,
    on_copy: str | None = None,
    tries: int = 3,
    judge: Similarity | None = None,
) -> GuardedPipeline:
    """A pipeline of diffusers under a guidance: the same call, the same output, its attributes at hand.

        guarded = guard(pipe, AntiMemorizationGuidance(similarity, threshold, c1=6.0, c2=10.0, c3=100.0))
        images = guarded("a cat", num_inference_steps=50).images

    For the length of one call the denoiser is watched by a forward hook and `pipe.scheduler.step` is wrapped, so that
    the guidance edits the noise prediction after CFG and before the step. Both are undone whatever happens. Where the
    guidance changes nothing the output is that of the bare pipeline, bit by bit. Samples that become NaN or infinite
    are passed on as they are; a warning at the end counts them.

    Args:
        pipe: an instance of a class in `families.FAMILIES`, with a scheduler that calls the network once a step.
        guidance: it may rewrite prompts, edit embeddings, the first noise and predictions, shift x_{t−1} and attach to
            the pipe.
        on_step: sees each step and the guidance's state; not those of images that are drawn again.
        decoder: what shows the guidance predicted images: auto, vae, tiny, linear, or an `AutoencoderTiny`; see
            `amg.sampling.decoders.decoder_of`. The finished image is always decoded by the VAE.
        looks: every looks at each sample in each step, as the paper does. adaptive lets a sample rest as was learned
            for a preset's model, similarity and sampler; where nothing was, a warning says so. A file of
            `task=calibrate`, the name of one in `amg.guidance.presets.CURVES`, or a `Looks` serves too. None leaves it
            to the guidance.
        on_copy: what happens to a finished image beyond the copy threshold of the guidance's similarity, or of the
            judge. "flag" reports it. "resample" draws it again, `tries` times at most, and then refuses it; try k
            draws from a seed made of the image's own and k, from the second on with the strong constants of a preset.
            "refuse" puts a black image in its place. None looks at no finished image. The call's report, one
            `SampleReport` per image, is `guarded.report`.
        tries: redraws of an image at most.
        judge: a similarity that gives no gradient, whose `copy` threshold counts beside the guide's.
    Raises:
        ValueError: for an untested pipeline, scheduler or guidance, by name; for `on_copy` where neither guidance nor
            judge knows the training images. Before the first step of a call: for a
            method that rewrites prompts where only embeddings are given, or that works on CFG where there is none; for
            G_dup where the text encoder was freed; for weights loaded under `torch.inference_mode` where a gradient
            passes them.
        RuntimeError: in a call, where another call uses the same denoiser or scheduler.

    In img2img and inpainting the user's own image is in x̂0. Without CFG there is no second prediction: G_spe and G_dup
    do nothing, and a warning says so once. Seeds come from the generators passed to the call: each one's
    `initial_seed()`, or that of a single one plus the row.
    """
    return GuardedPipeline(pipe, guidance, on_step, decoder, looks, on_copy, tries, judge)


def sample_pipeline(
    model: Model,
    seeds: Sequence[int],
    prompts: Sequence[str] | None,
    guidance: Guidance,
    *,
    s0: float,
    scheduler: type | None,
    steps: int,
    eta: float,
    on_step: Callable[[Step, Any], None] | None,
    decoder: Decoder | None = None,
) -> Tensor:
    """`amg.sampling.sample` of a model that is a pipeline: one call of it under `guard`.

    Raises:
        ValueError: for s0 < 1, which pipelines take for 1.
    """
    if s0 < 1:
        raise ValueError(f"s0 must be >= 1 for {type(model.pipeline).__name__}, got {s0}")
    pipe, family = model.pipeline, family_of(model.pipeline)
    call = {
        "prompt": [""] * len(seeds) if prompts is None else list(prompts),
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": model.side,
        "width": model.side,
        "output_type": "latent",
    } | model.options
    accepted = inspect.signature(pipe.__call__).parameters
    if family.scale:
        call[family.scale] = (1.0 if prompts is None else s0) - family.scale_offset
    if family.uses_cfg is true_cfg and s0 > 1:
        call["negative_prompt"] = [""] * len(seeds)
    if "eta" in accepted:
        call["eta"] = eta
    before, pipe.scheduler = pipe.scheduler, schedule.own_scheduler(model, scheduler, steps)
    try:
        return guard(pipe, guidance, on_step, decoder=decoder or "vae").run((), call)[1].x_prev
    finally:
        pipe.scheduler = before


GUARDS_OWN = ("pipe", "guidance", "on_step", "decoder", "on_copy", "tries", "judge", "report", "_told")


class GuardedPipeline:
    """A diffusers pipeline whose calls run under a guidance. All other attributes are the pipeline's own.

    They are read from the pipeline and set on it. The arguments of `guard` and `report` cannot be replaced;
    `components` is refused, since a pipeline made of them, e.g. by `from_pipe`, would be unguarded.
    """

    def __init__(
        self,
        pipe: Any,
        guidance: Guidance,
        on_step: Callable[[Step, Any], None] | None = None,
        decoder: Any = "auto",
        looks: str | Looks | None = None,
        on_copy: str | None = None,
        tries: int = 3,
        judge: Similarity | None = None,
    ):
        # `__setattr__` writes to the pipeline; these are the guard's own
        vars(self).update(pipe=pipe, guidance=guidance, on_step=on_step, on_copy=on_copy, tries=tries, judge=judge)
        vars(self).update(report=[], _told=set())
        self._check()
        on_copies.check(on_copy, tries, guidance, judge)
        if isinstance(guidance, Guidance):  # a plain function serves as a guidance
            guidance = guidance.looking(_looks(looks, guidance, pipe))
        vars(self).update(guidance=guidance, decoder=decoder_of(pipe, decoder, bank_of(guidance)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own call; `report` is what is known of its images, with `on_copy`."""
        return self.run(args, kwargs)[0] if self.on_copy is None else on_copies.checked(self, args, kwargs)

    @property
    def family(self) -> Family:
        """The row of the pipeline."""
        return family_of(self.pipe)

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a call gives, by name."""
        arguments = inspect.signature(self.pipe.__call__).bind(*args, **kwargs).arguments
        return {name: v for name, v in arguments.items() if name != "kwargs"} | arguments.get("kwargs", {})

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, _Call]:
        """Runs a call whatever its images show; returns its output and the call."""
        self._check()
        family, arguments = self.family, inspect.signature(self.pipe.__call__).bind(*args, **kwargs)
        named = arguments.arguments.setdefault("kwargs", {}) if family.guider else arguments.arguments
        seeds = _Seeds(named.get("generator"))
        prompts = self._rewrite(named, seeds)
        given = arguments.args, arguments.kwargs
        arguments.apply_defaults()
        named = {**arguments.arguments, **named}
        for name in family.refuses:
            if named.get(name) is not None:
                raise ValueError(f"guard does not follow {name} of {type(self.pipe).__name__}: leave it out")
        call = _Call(self, seeds, prompts, named)
        with call.watch():
            return self.pipe(*given[0], **given[1]), call

    def to(self, *args: Any, **kwargs: Any) -> GuardedPipeline:
        """Moves the pipeline; still guarded."""
        self.pipe.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in GUARDS_OWN:  # not there yet, e.g. while unpickled
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
            if guidance.needs_points:
                raise ValueError(f"{method} works on a known law, and {name} has none")
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


def _looks(looks: str | Looks | None, guidance: Guidance, pipe: Any) -> Looks | None:
    """The rests that `guard(looks=)` stands for; None for none."""
    found = looks
    if looks in (None, "adaptive"):
        watches = [watch for one in flat(guidance) if (watch := getattr(one, "watch", None)) is not None]
        found = next((watch.looks for watch in watches if watch.looks is not None), None)
    elif isinstance(looks, str):
        found = None if looks == "every" else named_looks(looks)
    sampler = type(pipe.scheduler).__name__
    if looks == "adaptive" and found is None or found is not None and found.sampler != sampler:
        of = f"with {sampler}, only with {found.sampler}" if found else "for this guidance's model and similarity"
        warnings.warn(f"looks: no rests were learned {of}: every step is looked at", stacklevel=4)
        return None
    return found


class _Seeds:
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
