"""Table of the pipelines of diffusers that `guard` knows: one row per class.

A guidance sees (B, C, h, w) whatever a pipeline's own layout is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amg.tensors import broadcast, norm

ATTENTION_OPTIONS = ("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs")
TEXT_OPTIONS = (
    "clean_caption",
    "clip_skip",
    "complex_human_instruction",
    "max_sequence_length",
    "text_encoder_out_layers",
)
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


def true_cfg(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Tells whether a call uses CFG beside the guidance that is embedded: by its scale and a negative prompt."""
    negative = call.get("negative_prompt") is not None or call.get("negative_prompt_embeds") is not None
    return negative and call["true_cfg_scale"] > 1


def by_guider(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Tells whether a running call uses CFG, as the guider of a ModularPipeline says."""
    return getattr(pipe, "guider", None) is not None and pipe.guider.num_conditions > 1


def norm_of_each_token(uncond: Tensor, cond: Tensor, s0: float, call: Mapping[str, Any]) -> Tensor:
    """Eq. 7, each token of the length that it has in the conditional output."""
    output = eq7(uncond, cond, s0, call)
    return output * (cond.norm(dim=-1, keepdim=True) / output.norm(dim=-1, keepdim=True))


def capped(uncond: Tensor, cond: Tensor, s0: float, call: Mapping[str, Any]) -> Tensor:
    """Eq. 7, no row longer than `cfg_normalization` times the conditional output."""
    output, cap = eq7(uncond, cond, s0, call), float(call["cfg_normalization"])
    if cap > 0:
        length, longest = (broadcast(norm(value)) for value in (output, cond))
        output = output * (cap * longest / length).clamp(max=1)
    return output


def grid_of_ids(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Returns rows and columns of tokens by `img_ids`, whose first column is 0 for the image that is sampled."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    _, rows, columns = (ids[ids[:, 0] == 0][:, :3].amax(0) + 1).int().tolist()
    return rows, columns


def grid_of_shapes(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the same by `img_shapes`, one list of (frames, rows, columns) per image."""
    return tuple(arguments["img_shapes"][0][0][1:])


@dataclass(frozen=True)
class Family:
    """Questions that the pipelines of one class ask their denoiser, and use that they make of its answers.

    `call` is a call of the pipeline: its arguments by name, with their defaults.
    """

    denoiser: str = "transformer"
    """Attribute of the pipeline. What the denoiser is fed is its first argument."""
    latents: bool = True
    """Samples are latents of `pipe.vae`; else they are images."""
    encoded: tuple[str | None, ...] = ("encoder_hidden_states",)
    """Arguments of the denoiser that take the values of `pipe.encode_prompt`, by name; None is unused.

    () for a pipeline without text.
    """
    encoders: int = 1
    """Number of text encoders that a prompt needs, each with its tokenizer."""
    uses_cfg: Callable[[Any, Mapping[str, Any]], bool] = by_property
    """uses_cfg(pipe, call): whether there are two predictions, of which the pipeline makes one."""
    order: tuple[bool, bool] = (False, True)
    """Their order; True is the conditional one."""
    calls: int = 1
    """Number of calls for both: 1 of 2B rows or 2 of B."""
    scale: str = "guidance_scale"
    """Argument of a call that says s0 of Eq. 7; "" where there never is CFG."""
    scale_offset: float = 0.0
    """s0 less that argument."""
    combine: Callable[[Tensor, Tensor, float, Mapping[str, Any]], Tensor] = eq7
    """combine(uncond, cond, s0, call): what the scheduler is given."""
    guider: bool = False
    """Is a ModularPipeline: its guider says s0, and its blocks encode prompts."""
    refuses: tuple[str, ...] = ()
    """Arguments of a call that change the prediction in ways that `guard` does not follow."""
    by_row: tuple[str, ...] = ()
    """Arguments of the denoiser with one row per row of the batch, beside those in `recorded_call.BY_ROW`."""
    tiny: str = ""
    """Name on the hub of the `AutoencoderTiny` that takes its latents at the denoiser's scale; "" for none."""

    def feed(self, x: Tensor) -> Any:
        """Returns rows in the scheduler's layout as the denoiser is fed them."""
        return x

    def fed(self, value: Any) -> Tensor:
        """Returns what the denoiser was fed, R rows in the scheduler's layout."""
        return value

    def answer(self, value: Any) -> Tensor:
        """Returns what the denoiser answered, R rows in the scheduler's layout and with its sign."""
        return value

    def join(self, rows: list[Tensor]) -> Any:
        """Returns encoded captions, which may differ in length, as one argument of the denoiser."""
        return pad_sequence(rows, batch_first=True)

    def pack(self, x: Tensor) -> Tensor:
        """Returns (R, C, h, w) in the scheduler's layout; what is more in a denoiser's input or output is in dim 1."""
        return x

    def unpack(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Returns samples in the scheduler's layout as (R, C, h, w).

        Args:
            arguments: of the denoiser, which say how large an image is.
        """
        return x

    def s0(self, pipe: Any, call: Mapping[str, Any]) -> float:
        """Returns s0 of Eq. 7 that a call asks for."""
        return pipe.guider.guidance_scale if self.guider else call[self.scale] + self.scale_offset

    def parts(self) -> list[str]:
        """Returns the names of what encodes a prompt."""
        if self.guider:
            return ["encode_prompt"]
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
        encoded = {name: value for name, value in zip(self.encoded, values, strict=False) if name is not None}
        for name, value in encoded.items():
            if value is None:  # a mask that hides nothing
                sequence = encoded["encoder_hidden_states"]
                encoded[name] = torch.ones(sequence.shape[:2], dtype=torch.long, device=sequence.device)
        return encoded


@dataclass(frozen=True)
class Packed(Family):
    """Samples are tokens of p×p pixels, (B, h·w, C·p²), for (B, C, p·h, p·w)."""

    patch: int = 2
    """p."""
    grid: Callable[[Mapping[str, Any]], tuple[int, int]] = grid_of_ids
    """grid(arguments of the denoiser): (h, w)."""

    def pack(self, x):
        rows, channels, height, width = x.shape
        p = self.patch
        x = x.reshape(rows, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(rows, height * width // p**2, channels * p**2)

    def unpack(self, x, arguments):
        (h, w), p = self.grid(arguments), self.patch
        x = x.reshape(len(x), h, w, -1, p, p).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(len(x), -1, h * p, w * p)


@dataclass(frozen=True)
class Listed(Family):
    """The denoiser is fed lists of (C, 1, h, w), and answers −v."""

    def feed(self, x):
        return list(x.unsqueeze(2).unbind(0))

    def fed(self, value):
        return torch.stack(list(value)).squeeze(2)

    def answer(self, value):
        return -self.fed(value).float()

    def join(self, rows):
        return rows


TAESD, TAESDXL, TAESD3, TAEF1 = (f"madebyollin/{name}" for name in ("taesd", "taesdxl", "taesd3", "taef1"))

SD = Family("unet", tiny=TAESD)
SD3 = Family(
    encoded=("encoder_hidden_states", None, "pooled_projections"),
    encoders=2,  # the third, T5, may be left out
    refuses=("skip_guidance_layers", "ip_adapter_image", "ip_adapter_image_embeds"),
    tiny=TAESD3,
)
COND_FIRST = (True, False)
FLUX = Packed(
    encoded=("encoder_hidden_states", "pooled_projections"),
    encoders=2,
    uses_cfg=true_cfg,
    order=COND_FIRST,
    calls=2,
    scale="true_cfg_scale",
    refuses=("ip_adapter_image", "ip_adapter_image_embeds", "negative_ip_adapter_image"),
    tiny=TAEF1,
)
FLUX2 = Packed(patch=1, by_row=("img_ids", "txt_ids"), uses_cfg=lambda pipe, call: False, scale="")  # all embedded
MASKED = Family(encoded=("encoder_hidden_states", "encoder_attention_mask"))
PIXELS = Family("unet", latents=False, encoded=(), uses_cfg=lambda pipe, call: False)

MODULAR = {"guider": True, "uses_cfg": by_guider, "order": COND_FIRST, "calls": 2}

FAMILIES = {
    "DDIMPipeline": PIXELS,
    "DDPMPipeline": PIXELS,
    "Flux2KleinPipeline": replace(FLUX2, uses_cfg=by_property, scale="guidance_scale", order=COND_FIRST, calls=2),
    "Flux2Pipeline": FLUX2,
    "FluxImg2ImgPipeline": FLUX,
    "FluxPipeline": FLUX,
    "PixArtSigmaPipeline": replace(  # in the latents of SDXL
        MASKED, uses_cfg=lambda pipe, call: call["guidance_scale"] > 1, tiny=TAESDXL
    ),
    "QwenImagePipeline": Packed(
        encoded=("encoder_hidden_states", "encoder_hidden_states_mask"),
        uses_cfg=true_cfg,
        order=COND_FIRST,
        calls=2,
        scale="true_cfg_scale",
        combine=norm_of_each_token,
        grid=grid_of_shapes,
    ),
    "SanaPipeline": MASKED,
    "StableDiffusion3Img2ImgPipeline": SD3,
    "StableDiffusion3ModularPipeline": replace(SD3, **MODULAR),
    "StableDiffusion3Pipeline": SD3,
    "StableDiffusionControlNetPipeline": SD,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "StableDiffusionPipeline": SD,
    "StableDiffusionXLPipeline": Family(
        "unet", encoded=("encoder_hidden_states", None, "text_embeds"), encoders=2, tiny=TAESDXL
    ),
    "ZImagePipeline": Listed(  # in the latents of Flux.1
        encoded=("cap_feats",), order=COND_FIRST, scale_offset=1.0, combine=capped, tiny=TAEF1
    ),
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
