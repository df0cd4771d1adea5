"""What `guard` knows of the pipelines of diffusers: one row per class.

A guidance sees (B, C, h, w) whatever a pipeline's own layout is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from amg.tensors import broadcast

ATTENTION_OPTIONS = ("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs")
TEXT_OPTIONS = ("clean_caption", "clip_skip", "complex_human_instruction", "max_sequence_length")
"""Arguments of a call that say how its prompts are encoded."""


def eq7(uncond: Tensor, cond: Tensor, s0: float, call: Mapping[str, Any]) -> Tensor:
    """Eq. 7, and a share φ of it rescaled to the spread of the conditional output (Lin et al., 2023, Eqs. 14-16)."""
    output, rescale = uncond + s0 * (cond - uncond), call.get("guidance_rescale") or 0.0
    if rescale > 0:
        spread, wanted = (broadcast(value.flatten(1).std(1)) for value in (output, cond))
        output = output * (rescale * wanted / spread + 1 - rescale)
    return output


def by_property(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Tells whether a running call uses CFG, as the pipeline itself says."""
    return pipe.do_classifier_free_guidance


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class ask their denoiser, and what they make of its answers.

    `call` is a call of the pipeline: its arguments by name, with their defaults.
    """

    denoiser: str = "transformer"
    """Attribute of the pipeline. What the denoiser is fed is its first argument."""
    latents: bool = True
    """Whether samples are latents of `pipe.vae`; else they are images."""
    encoded: tuple[str | None, ...] = ("encoder_hidden_states",)
    """What each value that `pipe.encode_prompt` returns is to the denoiser, by the argument's name; None is unused.

    () for a pipeline without text.
    """
    encoders: int = 1
    """Number of text encoders that a prompt needs, each with its tokenizer."""
    uses_cfg: Callable[[Any, Mapping[str, Any]], bool] = by_property
    """uses_cfg(pipe, call): whether there are two predictions, of which the pipeline makes one."""
    order: tuple[bool, bool] = (False, True)
    """Their order, whether in one call of 2B rows or in two of B: True is the conditional one."""
    scale: Callable[[Mapping[str, Any]], float] = field(default=lambda call: call["guidance_scale"])
    """scale(call): s0 of Eq. 7."""
    combine: Callable[[Tensor, Tensor, float, Mapping[str, Any]], Tensor] = eq7
    """combine(uncond, cond, s0, call): what the scheduler is given."""
    refuses: tuple[str, ...] = ()
    """Arguments of a call that change the prediction in ways that `guard` does not follow."""

    def to_denoiser(self, x: Tensor) -> Any:
        """Returns rows in the scheduler's layout as the denoiser is fed them."""
        return x

    def of_denoiser(self, value: Any) -> Tensor:
        """Returns what the denoiser is fed or answers, R rows in the scheduler's layout."""
        return value

    def pack(self, x: Tensor) -> Tensor:
        """Returns (R, C, h, w) in the scheduler's layout; what is more in a denoiser's input or output is in dim 1."""
        return x

    def unpack(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Returns samples in the scheduler's layout as (R, C, h, w).

        Args:
            arguments: of the denoiser, which say how large an image is.
        """
        return x

    def parts(self) -> list[str]:
        """Returns the names of the components that encode a prompt."""
        ends = ["" if i == 0 else f"_{i + 1}" for i in range(self.encoders if self.encoded else 0)]
        return [part + end for end in ends for part in ("tokenizer", "text_encoder")]

    def encode(self, pipe: Any, captions: Sequence[str], call: Mapping[str, Any]) -> dict[str, Any]:
        """Encodes captions as the running call's prompts are, to the denoiser's arguments, one row per caption."""
        attention = next((call[name] for name in ATTENTION_OPTIONS if call.get(name)), {})
        options = {name: call[name] for name in TEXT_OPTIONS if name in call} | {
            "device": pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
            "lora_scale": attention.get("scale"),
            "prompt_2": None,
            "prompt_3": None,
        }
        accepted = inspect.signature(pipe.encode_prompt).parameters
        values = pipe.encode_prompt(list(captions), **{name: v for name, v in options.items() if name in accepted})
        values = values if isinstance(values, tuple) else (values,)
        return {name: value for name, value in zip(self.encoded, values, strict=False) if name is not None}


SD = Family("unet")
SD3 = Family(
    encoded=("encoder_hidden_states", None, "pooled_projections"),
    encoders=2,  # the third, T5, may be left out
    refuses=("skip_guidance_layers", "ip_adapter_image", "ip_adapter_image_embeds"),
)
PIXELS = Family("unet", latents=False, encoded=(), uses_cfg=lambda pipe, call: False)

FAMILIES = {
    "DDIMPipeline": PIXELS,
    "DDPMPipeline": PIXELS,
    "StableDiffusion3Pipeline": SD3,
    "StableDiffusionControlNetPipeline": SD,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "StableDiffusionPipeline": SD,
    "StableDiffusionXLPipeline": Family("unet", encoded=("encoder_hidden_states", None, "text_embeds"), encoders=2),
}
"""By the class's name; docs/adding.md says how to add one."""


def family_of(pipe: Any) -> Family:
    """Returns the row of a pipeline.

    Raises:
        ValueError: for a class that has none, naming those that have.
    """
    name = type(pipe).__name__
    if name in FAMILIES:
        return FAMILIES[name]
    if {"num_frames", "video_length", "video"} & inspect.signature(type(pipe).__call__).parameters.keys():
        raise ValueError(f"{name} samples video, and guard compares images")
    raise ValueError(
        f"guard does not know {name}; it is tested with {', '.join(sorted(FAMILIES))}. To add one: docs/adding.md"
    )
