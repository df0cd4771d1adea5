"""Decoders of latents: the VAE of a pipeline, differentiable and in slices, and cheap ones for what a guidance sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amg.tensors import finite_rows

SLICE_PIXELS = 512 * 512
"""Pictures decoded at once hold at most so many pixels, or are one: memory does not grow with the batch."""


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
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0)
        factor = 2 ** (len(config.block_out_channels) - 1)
        pixels = latents.shape[2] * latents.shape[3] * factor**2
        slices = latents.to(vae.dtype).split(max(1, SLICE_PIXELS // pixels))
        return torch.cat([self._decode(vae, part) for part in slices])

    @staticmethod
    def _decode(vae: Any, latents: Tensor) -> Tensor:
        def decode(part: Tensor) -> Tensor:
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
    """Decodes latents with an `AutoencoderTiny` that was distilled from the same VAE, a fifteenth of its cost.

    It takes latents as the denoiser knows them, so the VAE's scale and shift play no part.

    Raises:
        ValueError: for one of another number of latent channels or another resolution than the VAE's.
    """

    def __init__(self, tiny: Any, vae: Any):
        for what, own, other in (
            ("latent channels", tiny.config.latent_channels, vae.config.latent_channels),
            ("stages", len(tiny.config.decoder_block_out_channels), len(vae.config.block_out_channels)),
        ):
            if own != other:
                raise ValueError(f"decoder: this AutoencoderTiny has {own} {what}, the pipeline's VAE {other}")
        self.tiny = tiny.requires_grad_(False).eval()

    def __call__(self, latents: Tensor) -> Tensor:
        """Decodes (B, C, h, w) to (B, 3, H, W), about [−1, 1]; float32 if it computes in half precision."""
        images = self.tiny.decode(latents.to(self.tiny.device, self.tiny.dtype), return_dict=False)[0]
        return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


class LinearDecoder:
    """Decodes each latent to one colour, by least squares on images and their encodings; nothing is downloaded.

    Args:
        vae: of the pipeline.
        images: what to fit, (N, 3, H, W) in [−1, 1].
        most: images to fit at most; each gives H·W latents.
    """

    def __init__(self, vae: Any, images: Tensor, most: int = 256):
        images = images[:: max(1, len(images) // most)][:most]
        latents = encode_latents(vae, images)
        self.factor = images.shape[2] // latents.shape[2]
        colours = F.avg_pool2d(images.to(latents), self.factor).permute(0, 2, 3, 1).flatten(0, 2)
        rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        self.weights = torch.linalg.lstsq(rows.double(), colours.double()).solution.float()  # (C + 1, 3)

    def __call__(self, latents: Tensor) -> Tensor:
        """Decodes (B, C, h, w) to (B, 3, H, W), about [−1, 1], in float32."""
        weights = self.weights.to(latents.device)
        colours = torch.einsum("bchw,cd->bdhw", latents.float(), weights[:-1]) + weights[-1].view(1, 3, 1, 1)
        return F.interpolate(colours, scale_factor=self.factor, mode="bilinear", antialias=False)


@torch.no_grad()
def encode_latents(vae: Any, images: Tensor) -> Tensor:
    """Encodes images as a VAE of diffusers does, to the mean of each latent, (N, 3, H, W) to (N, C, h, w).

    The inverse of `LatentDecoder` but for what the VAE loses: scaled and shifted as the denoiser is used to.
    """
    parts = images.split(max(1, SLICE_PIXELS // (images.shape[2] * images.shape[3])))
    encoded = (vae.encode(part.to(vae.device, vae.dtype)) for part in parts)
    # a tiny autoencoder has no distribution
    latents = torch.cat([e.latent_dist.mode() if hasattr(e, "latent_dist") else e.latents for e in encoded]).float()
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
