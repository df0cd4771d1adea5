"""Stable Diffusion 1.x, 2.x and XL, and any folder of diffusers' format with the same parts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.hub import fetch as fetch  # what a component's module says of how its files come
from amg.hub import reachable
from amg.models.base import Condition, Model, take
from amg.models.latents import LatentDecoder
from amg.tensors import sketch_of

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
OUT_OF_REACH = "not on disk, and the hub is out of reach"
KEPT = 64
"""Encoded batches that are remembered, and four times as many prompts: a guided trajectory asks for the captions
of whichever samples are flagged at step after step."""


class StableDiffusion(Model):
    """A text-conditional latent diffusion model as `amg.sampling.sample` sees it.

    Without guidance its latents are those of the pipeline for the same noise, bit by bit on a CPU in float32: prompts
    are encoded by the pipeline's own method and combined by Eq. 7 in the same order.

    Args:
        source: a folder in diffusers' format, a name on the hub, or a pipeline in memory. A network connection is
            needed at most once; what is on disk is used as it is.
        size: side of the images in pixels; the model's own where None.
        scheduler: name of a diffusers scheduler class, built from the model's config; None keeps the model's own.
        variant: e.g. `fp16`, for folders that hold several.
        device, dtype: of the networks and the latents; a dtype or its name. A pipeline in memory keeps its own dtype.
    Raises:
        FileNotFoundError: where the model is neither on disk nor to be fetched.
        ValueError: for a pipeline of another kind.

    The safety checker is left out: the black images that it makes would pass for novel ones.
    """

    has_attention = has_text_encoder = True

    def __init__(
        self,
        source: str | Path | Any,
        size: int | None = None,
        scheduler: str | None = "DDIMScheduler",
        variant: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ):
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.pipe = load(source, variant, dtype) if isinstance(source, (str, Path)) else source
        name = type(self.pipe).__name__
        if name not in PIPELINES:
            raise ValueError(f"model: {source} is a {name}; expected one of {', '.join(PIPELINES)}")
        self.pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        self.xl = name == PIPELINES[1]
        self.unet, self.tokenizer = self.pipe.unet, self.pipe.tokenizer
        self.scheduler = _scheduler(self.pipe.scheduler, scheduler)
        self.device, self.dtype = torch.device(device), self.unet.dtype
        factor, own = self.pipe.vae_scale_factor, self.unet.config.sample_size
        if size is not None and size % factor:
            raise ValueError(f"model.size must be a multiple of {factor}, got {size}")
        side = own if size is None else size // factor
        self.shape = (self.unet.config.in_channels, side, side)
        self.side = side * factor
        if self.shape[0] != self.pipe.vae.config.latent_channels:
            raise ValueError(f"model: {source} wants {self.shape[0]} channels, more than latents: an inpainting model?")
        self.decode_latents = LatentDecoder(self.pipe.vae)
        self._encoded: dict[tuple, Condition] = {}
        self._rows: dict[str, Condition] = {}
        self._checked: set[str] = set()

    @cached_property
    def digest(self) -> str:
        """Hash of a sample of the U-Net's weights: it names the network in a run's record."""
        return sketch_of(self.unet)

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> tuple[Tensor, None]:
        """The U-Net's output, ε or v as the scheduler's config says, (B, C, h, w); of the null condition for None."""
        if condition is None:
            condition = self.encode([None] * len(x_t))
        if isinstance(condition, dict):
            extra = {name: value for name, value in condition.items() if name != "encoder_hidden_states"}
            condition, ask = condition["encoder_hidden_states"], partial(self.unet, added_cond_kwargs=extra)
        else:
            ask = self.unet
        return ask(x_t, timestep, encoder_hidden_states=condition, return_dict=False)[0], None

    @torch.no_grad()
    def encode(self, conditions: Sequence[str | None]) -> Condition:
        """Prompts, or None for no condition, to embeddings; a dict with pooled embeddings and sizes for SDXL.

        Raises:
            ValueError: for a prompt that is empty or no string.
        """
        key = tuple(conditions)
        if key not in self._encoded:
            self.check(conditions)
            if len(self._encoded) >= KEPT:
                self._encoded.pop(next(iter(self._encoded)))
            words = [prompt for prompt in conditions if prompt is not None]
            if words and len(words) < len(conditions):
                rows = [self.encode([prompt]) for prompt in conditions]  # mixed: one by one
                self._encoded[key] = _stack(rows)
            elif not words or not self._rows.keys() & set(words):  # together, as the pipeline does
                self._encoded[key] = self._encode(list(conditions))
                self._remember(words, self._encoded[key])
            else:
                rows = {word: self._rows[word] for word in words if word in self._rows}
                new = [word for word in dict.fromkeys(words) if word not in rows]
                rows |= self._remember(new, self._encode(new)) if new else {}
                self._encoded[key] = _stack([rows[word] for word in words])
        return self._encoded[key]

    def _remember(self, words: Sequence[str], encoded: Condition) -> dict[str, Condition]:
        """Returns the rows of encoded prompts, by prompt, and keeps them in the place of the oldest."""
        rows = {word: take(encoded, torch.tensor([i])) for i, word in enumerate(words)}
        self._rows |= rows
        for word in list(self._rows)[: max(0, len(self._rows) - 4 * KEPT)]:
            del self._rows[word]
        return rows

    def check(self, conditions: Sequence[str | None]) -> None:
        """Looks at prompts without encoding them; says once of each that it is too long.

        Raises:
            ValueError: for a prompt that is empty or no string.
        """
        check_prompts(conditions, self.tokenizer, self._checked)

    def decode(self, x0: Tensor) -> Tensor:
        """Latents to images, (B, 3, H, W), about [−1, 1]."""
        return self.decode_latents(x0)

    def _encode(self, conditions: list[str | None]) -> Condition:
        null = conditions[0] is None
        prompts = ["" if prompt is None else prompt for prompt in conditions]
        # as the pipeline does it: the null condition is what it makes of a negative prompt that nobody gave
        with _no_word_of_length(self.pipe):
            encoded = self.pipe.encode_prompt(
                prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=null
            )
        if not self.xl:
            return encoded[1] if null else encoded[0]
        sequence, pooled = (encoded[1], encoded[3]) if null else (encoded[0], encoded[2])
        side = self.shape[1] * self.pipe.vae_scale_factor
        projection = self.pipe.text_encoder_2.config.projection_dim
        sizes = self.pipe._get_add_time_ids((side, side), (0, 0), (side, side), sequence.dtype, projection)
        sizes = sizes.to(self.device).repeat(len(conditions), 1)
        return {"encoder_hidden_states": sequence, "text_embeds": pooled, "time_ids": sizes}


def check_prompts(conditions: Sequence[str | None], tokenizer: Any, checked: set[str]) -> None:
    """Looks at prompts without encoding them; says once of each that it is too long.

    Args:
        checked: prompts looked at before; the new ones are added.
    Raises:
        ValueError: for a prompt that is empty or no string.
    """
    for i, prompt in enumerate(conditions):
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is {prompt!r}: this model takes text, not labels")
        if prompt is not None and not prompt.strip():
            raise ValueError(f"prompt {i} is empty: write one, or leave `prompt` out for the default set")
    new = {prompt: i for i, prompt in enumerate(conditions) if prompt and prompt not in checked}
    if not new:
        return
    checked.update(new)
    length = tokenizer.model_max_length
    tokens = tokenizer(list(new), truncation=False, verbose=False).input_ids
    long = [(i, ids) for i, ids in zip(new.values(), tokens, strict=True) if len(ids) > length]
    if long:
        i, ids = long[0]
        lost = tokenizer.decode(ids[length - 1 : -1]).strip()
        more = f" (and {len(long) - 1} more of {len(conditions)} prompts)" if len(long) > 1 else ""
        warnings.warn(f"prompt {i} has {len(ids)} tokens of {length}: cut off before {lost!r}{more}", stacklevel=3)


def find(source: str | Path | Any) -> None:
    """Looks for a model without loading it.

    Raises:
        FileNotFoundError: where it is neither on disk nor to be fetched; it says what to do.
    """
    if not isinstance(source, (str, Path)):
        return
    try:
        _index(source, local=True)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise _missing(source, error) from None
        if not reachable():
            raise _missing(source, OUT_OF_REACH) from None


def load(source: str | Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of diffusers from disk, or from the hub where it is not on disk; its safety checker is left out."""
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"variant": variant, "torch_dtype": dtype, "use_safetensors": True}
    reason: Exception | str = ""
    for local in (True, False):
        if not local and not reachable():
            reason = OUT_OF_REACH
            break
        try:
            index = _index(source, local)
            options |= {name: None for name, part in index.items() if part == [None, None]}  # left out when saved
            if index.get("_class_name") == PIPELINES[0]:
                options |= {"safety_checker": None, "requires_safety_checker": False}
            return DiffusionPipeline.from_pretrained(source, local_files_only=local, **options)
        except (OSError, ValueError) as error:  # what diffusers raises for a missing file, and for a broken one
            reason = error
            if Path(source).is_dir():
                break
    raise _missing(source, reason) from None


@contextmanager
def _no_word_of_length(pipe: Any) -> Iterator[None]:
    """`check` says once that a prompt is too long; the pipeline and its tokenizer would at every call."""

    def other(record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in ("was truncated", "sequence length is longer"))

    names = (type(pipe).__module__, "transformers.tokenization_utils_base")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(other)


def _index(source: str | Path, local: bool) -> dict[str, Any]:
    """A pipeline's `model_index.json`; from disk alone where local."""
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings():  # diffusers gives the hub's client an argument of the past
        warnings.filterwarnings("ignore", ".*local_dir_use_symlinks.*")
        return DiffusionPipeline.load_config(source, local_files_only=local)


def _missing(source: str | Path, reason: Exception | str) -> FileNotFoundError:
    where = "that folder" if Path(source).is_dir() else "a folder"
    why = str(reason).strip().splitlines()[0].rstrip(".")
    return FileNotFoundError(
        f"model {str(source)!r} could not be loaded ({why}): put its files, in diffusers' format with safetensors, "
        f"into {where} and set model.source to it; ClosedForm() needs no files"
    )


def _scheduler(own: Any, name: str | None) -> Any:
    import diffusers

    if name is None:
        return own
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise ValueError(f"model.scheduler: diffusers has no {name}; e.g. DDIMScheduler, DPMSolverMultistepScheduler")
    # latents have no bounds, but DDIM's default is to clip
    clip = {"clip_sample": False} if "clip_sample" not in own.config else {}
    return kind.from_config(own.config, **clip)


def _stack(rows: list[Condition]) -> Condition:
    if isinstance(rows[0], dict):
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return torch.cat(rows)
