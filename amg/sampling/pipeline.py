"""Any guidance inside a pipeline of diffusers: `guard(pipe, guidance)`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amg import schedule
from amg.guidance.base import Guidance, flat, rewriters
from amg.guidance.looks import Looks
from amg.guidance.presets import named_looks
from amg.models.base import Model
from amg.models.latents import Decoder
from amg.sampling import on_copy as on_copies
from amg.sampling.decoders import bank_of, decoder_of
from amg.sampling.families import Family, family_of, true_cfg
from amg.sampling.guarded_call import GuardedCall, Seeds
from amg.similarity.base import Similarity
from amg.step import Step


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
    _check(pipe, guidance)
    on_copies.check(on_copy, tries, guidance, judge)
    if isinstance(guidance, Guidance):  # a plain function serves as a guidance
        guidance = guidance.looking(_looks(looks, guidance, pipe))
    decoder = decoder_of(pipe, decoder, bank_of(guidance))
    own = {"on_copy": on_copy, "tries": tries, "judge": judge, "report": [], "_told": set()}
    return GuardedPipeline(pipe=pipe, guidance=guidance, on_step=on_step, decoder=decoder, **own)


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

    def __init__(self, **own: Any):
        vars(self).update(own)  # `__setattr__` writes to the pipeline

    def under(self, guidance: Guidance) -> GuardedPipeline:
        """Returns the same pipeline under another guidance; its calls look at no finished image."""
        return GuardedPipeline(**vars(self) | {"guidance": guidance, "on_step": None, "on_copy": None})

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

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, GuardedCall]:
        """Runs a call whatever its images show; returns its output and the call."""
        _check(self.pipe, self.guidance)
        family, arguments = self.family, inspect.signature(self.pipe.__call__).bind(*args, **kwargs)
        named = arguments.arguments.setdefault("kwargs", {}) if family.guider else arguments.arguments
        seeds = Seeds(named.get("generator"))
        prompts = self._rewrite(named, seeds)
        given = arguments.args, arguments.kwargs
        arguments.apply_defaults()
        named = {**arguments.arguments, **named}
        for name in family.refuses:
            if named.get(name) is not None:
                raise ValueError(f"guard does not follow {name} of {type(self.pipe).__name__}: leave it out")
        call = GuardedCall(self, seeds, prompts, named)
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

    def _rewrite(self, arguments: dict[str, Any], seeds: Seeds) -> list[str] | None:
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


def _check(pipe: Any, guidance: Any) -> None:
    """Refuses schedulers and guidances that do not go with a pipeline.

    Raises:
        ValueError: by name.
    """
    name, family = type(pipe).__name__, family_of(pipe)
    schedule.check(pipe.scheduler)
    for one in flat(guidance):
        if not isinstance(one, Guidance):  # a plain function serves as a guidance
            continue
        method = type(one).__name__
        if one.needs_prompts and not family.encoded:
            raise ValueError(f"{method} works on prompts, and {name} has none")
        if one.needs_attention and family.denoiser != "unet":
            raise ValueError(f"{method} edits the cross-attention of a U-Net, and {name} has none")
        if one.needs_points:
            raise ValueError(f"{method} works on a known law, and {name} has none")
    if getattr(pipe, "_all_hooks", None):
        warnings.warn("CPU offload moves the denoiser and the VAE at every guarded step: slow", stacklevel=3)


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
        warnings.warn(f"looks: no rests were learned {of}: every step is looked at", stacklevel=3)
        return None
    return found
