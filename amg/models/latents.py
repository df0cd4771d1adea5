"""Latents to images, as the pipelines of diffusers decode them but differentiable and in slices; cheaper; and back.

A finished image is decoded by `LatentDecoder`. What a guidance sees on the way may come of a `TinyDecoder` or a
`LinearDecoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amg.tensors import finite_rows

SLICE_PIXELS = 512 * 512
"""Images decoded at once hold at most so many pixels, or are one: memory does not grow with the batch."""
EARLY = 0.5
"""ᾱ_t below which `EarlyLinear` decodes by its linear map: the predicted image is a blur there."""
FIT_SIDE = 256
"""Images are encoded at this resolution at most to fit a `LinearDecoder`."""
FIT_LATENTS = 16384
"""Latents that it is fitted on, or more: the least number of images that give so many, 16 at least."""

Decoder = Callable[[Tensor], Tensor]
"""Latents (B, C, h, w) to images (B, 3, H, W), about [−1, 1]; differentiable."""


class LatentDecoder:
    """Decodes latents with a VAE of diffusers.

    Under `torch.enable_grad` each slice is recomputed in the backward pass, so that a gradient needs the memory of
    one slice only. Two kinds of VAE are decoded by a copy, made at first need: by one in float32, a float16 VAE that
    overflows (by `force_upcast`, or because finite latents became NaN or infinite); by one in the type it computes in,
    a VAE under diffusers' layerwise casting, whose weights change in place between the forward and the backward pass.
    """

    def __init__(self, vae: Any):
        self.vae, self._copy = vae, None
        self._overflows = bool(vae.config.get("force_upcast"))

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, H, W), about [−1, 1]; float32 where the VAE is in half precision."""
        images = self._images(latents)
        if self.vae.dtype == torch.float16 and not self._overflows:
            self._overflows = bool((finite_rows(latents) & ~finite_rows(images)).any())
            images = self._images(latents) if self._overflows else images
        return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images

    def _images(self, latents: Tensor) -> Tensor:
        vae = self._module()
        latents = _unscaled(vae, latents)
        slices = latents.to(vae.dtype).split(_slice(latents, vae))
        return torch.cat([self._decode(vae, part) for part in slices])

    @staticmethod
    def _decode(vae: Any, latents: Tensor) -> Tensor:
        def decode(part: Tensor) -> Tensor:
            if "temperal_downsample" in vae.config:  # of a video of one frame
                return vae.decode(part.unsqueeze(2), return_dict=False)[0][:, :, 0]
            return vae.decode(part, return_dict=False)[0]

        if torch.is_grad_enabled() and latents.requires_grad:
            return checkpoint(decode, latents, use_reentrant=False)
        return decode(latents)

    def _module(self) -> Any:
        dtype = torch.float32 if self.vae.dtype == torch.float16 and self._overflows else self.vae.dtype
        if not any(w.is_floating_point() and w.dtype.itemsize < dtype.itemsize for w in self.vae.parameters()):
            return self.vae
        if self._copy is None or self._copy.dtype != dtype:
            self._copy = _converted(getattr(self.vae, "_orig_mod", self.vae), dtype)
        return self._copy


class TinyDecoder:
    """Decodes latents with an `AutoencoderTiny` that was distilled from the pipeline's VAE, at a fifteenth of its cost.

    It takes latents at the denoiser's scale, which the VAE's scale and shift play no part in, and computes in the VAE's
    type. Under `torch.enable_grad` it keeps what the backward pass needs, unless there is more than one slice.

    Raises:
        ValueError: for one of other latents than the VAE's: channels, resolution or scale.
    """

    def __init__(self, tiny: Any, vae: Any):
        named = f"decoder: this {type(tiny).__name__}"
        if "decoder_block_out_channels" not in getattr(tiny, "config", {}):
            raise ValueError(f"{named} is no AutoencoderTiny; choose vae, tiny, linear or auto, or give one")
        channels = vae.config.get("latent_channels") or vae.config.get("z_dim")
        for what, own, other in (
            ("has {} latent channels", tiny.config.latent_channels, channels),
            ("decodes a latent to {0}×{0} pixels", magnification(tiny), magnification(vae)),
        ):
            if own != other:
                raise ValueError(f"{named} {what.format(own)}, and the pipeline's {type(vae).__name__} "
                                 f"{what.format(other)}: take the tiny one of its family")  # fmt: skip
        scaling = tiny.config.get("scaling_factor", 1), tiny.config.get("shift_factor") or 0
        if scaling != (1, 0):
            raise ValueError(
                f"{named} takes latents of scaling_factor {scaling[0]:g} and shift_factor {scaling[1]:g}, and the "
                "scheduler's have 1 and 0: take one that was distilled at the denoiser's scale"
            )
        # convolutions of few channels at full resolution: a quarter faster in this order
        self.tiny, self.vae = tiny.requires_grad_(False).eval().to(memory_format=torch.channels_last), vae

    def __call__(self, latents: Tensor) -> Tensor:
        """Decodes (B, C, h, w) to (B, 3, H, W), about [−1, 1]; float32 where the VAE is in half precision."""
        tiny, dtype = self.tiny, self.vae.dtype
        if (tiny.device, tiny.dtype) != (latents.device, dtype):
            tiny.to(latents.device, dtype)

        def decode(part: Tensor) -> Tensor:
            return tiny.decode(part, return_dict=False)[0].contiguous()

        slices = latents.to(dtype).split(_slice(latents, tiny))
        if len(slices) > 1 and torch.is_grad_enabled() and latents.requires_grad:
            images = torch.cat([checkpoint(decode, part, use_reentrant=False) for part in slices])
        else:
            images = torch.cat([decode(part) for part in slices])
        return images.float() if dtype in (torch.float16, torch.bfloat16) else images


class LinearDecoder:
    """Decodes each latent to one colour, by least squares on images and their encodings; nothing is downloaded.

    Colours are enlarged to the resolution of the images. Those beyond [−1, 1] saturate at ±1.5, as a VAE's do: the
    gradient becomes smaller there and never 0. The map is fitted at the first call.

    Args:
        vae: of the pipeline.
        images: N of (3, H, W) in [−1, 1], of any resolution; those that are encoded are read one by one.
    Raises:
        ValueError: where the VAE does not encode single images.
    """

    def __init__(self, vae: Any, images: Sequence[Tensor] | Tensor):
        if not encodes(vae):
            raise ValueError(f"decoder=linear: no map is fitted to {type(vae).__name__}; take decoder=vae or tiny")
        self.vae, self.images, self._weights = vae, images, None

    def __call__(self, latents: Tensor) -> Tensor:
        """Decodes (B, C, h, w) to (B, 3, H, W), within ±1.5, in float32 at least."""
        if self._weights is None:
            with torch.inference_mode(False), torch.no_grad():  # gradients pass it whatever the mode of the call
                self._weights = self._fit()
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        weights = self._weights.to(latents)
        colours = torch.einsum("bchw,cd->bdhw", latents, weights[:-1]) + weights[-1].view(1, 3, 1, 1)
        inside = colours.clamp(-1, 1)
        beyond = colours - inside
        colours = inside + beyond.sign() * (1 - 1 / (1 + 2 * beyond.abs())) / 2
        return F.interpolate(colours, scale_factor=magnification(self.vae), mode="bilinear")

    def _fit(self) -> Tensor:
        """Returns slopes and offset, (C + 1, 3)."""
        factor, (height, width) = magnification(self.vae), self.images[0].shape[1:]
        shrink = min(1, FIT_SIDE / max(height, width))
        size = [max(1, round(side * shrink / factor)) * factor for side in (height, width)]
        count = max(16, FIT_LATENTS * factor**2 // (size[0] * size[1]))
        some = range(0, len(self.images), max(1, len(self.images) // count))[:count]
        images = torch.cat([F.interpolate(self.images[i][None].float(), size, mode="area") for i in some])
        latents = encode_latents(self.vae, images)
        colours = F.avg_pool2d(images, factor).to(latents).movedim(1, 3).flatten(0, 2)
        rows = F.pad(latents.movedim(1, 3).flatten(0, 2), (0, 1), value=1.0)
        return torch.linalg.lstsq(rows.double().cpu(), colours.double().cpu()).solution


class EarlyLinear:
    """A linear decoder while x_t is mostly noise, the VAE later."""

    def __init__(self, linear: LinearDecoder, vae: LatentDecoder):
        self.linear, self.vae = linear, vae

    def at(self, alpha_bar: float) -> Decoder:
        """Returns the decoder at a noise level."""
        return self.linear if alpha_bar < EARLY else self.vae


def decoder_at(decoder: Decoder | EarlyLinear, alpha_bar: Tensor) -> Decoder:
    """Returns the decoder of a step whose rows have the noise level ᾱ_t, (B,)."""
    return decoder.at(alpha_bar[0].item()) if isinstance(decoder, EarlyLinear) else decoder


def encodes(vae: Any) -> bool:
    """Tells whether `encode_latents` knows how a VAE encodes."""
    return "scaling_factor" in vae.config and "temperal_downsample" not in vae.config and not hasattr(vae, "bn")


def _slice(latents: Tensor, vae: Any) -> int:
    """Images to decode at once."""
    return max(1, SLICE_PIXELS // (latents.shape[2] * latents.shape[3] * magnification(vae) ** 2))


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents of a denoiser as the VAE decodes them."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if hasattr(vae, "bn"):  # Flux.2's normalises patches of 2×2
        mean, std = vae.bn.running_mean, (vae.bn.running_var + config.batch_norm_eps).sqrt()
        latents = latents * std.view(1, -1, 1, 1).to(latents) + mean.view(1, -1, 1, 1).to(latents)
        return torch.nn.functional.pixel_shuffle(latents, 2)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
        return latents * std / config.get("scaling_factor", 1) + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0)


def magnification(vae: Any) -> int:
    """Pixels per latent and side."""
    config = vae.config
    if "temperal_downsample" in config:
        return 2 ** len(config.temperal_downsample)
    # an AutoencoderTiny's own `spatial_scale_factor` counts other blocks
    blocks = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    return 2 ** (len(blocks or config.encoder_block_out_channels) - 1)


@torch.no_grad()
def encode_latents(vae: Any, images: Tensor) -> Tensor:
    """Encodes images as a VAE of diffusers does, to the mean of each latent, (N, 3, H, W) to (N, C, h, w).

    The inverse of `LatentDecoder` but for what the VAE loses: scaled and shifted as the denoiser is used to.
    """
    parts = images.split(max(1, SLICE_PIXELS // (images.shape[2] * images.shape[3])))
    encoded = (vae.encode(part.to(vae.device, vae.dtype)) for part in parts)
    # tiny and deep-compression autoencoders have no distribution
    found = (e.latent_dist.mode() if hasattr(e, "latent_dist") else e.get("latents", e.get("latent")) for e in encoded)
    latents = torch.cat(list(found)).float()
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
        return (latents - mean) * vae.config.scaling_factor / std
    return (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor


@torch.no_grad()
def _converted(vae: Any, dtype: torch.dtype) -> Any:
    """A copy in another type, without the hooks that diffusers and accelerate put into modules."""
    with torch.inference_mode(False):  # gradients pass it whatever the mode of the call
        with torch.device("meta"):  # weights are not initialized: that would draw random numbers
            copy = type(vae).from_config(vae.config)
        weights = {name: value.to(dtype, copy=True) for name, value in vae.state_dict().items()}
        copy.load_state_dict(weights, assign=True)
    for option in ("use_slicing", "use_tiling"):
        setattr(copy, option, getattr(vae, option, False))
    return copy.eval().requires_grad_(False)
