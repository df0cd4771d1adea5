"""Latents to pictures, the way the pipelines of diffusers do it, but differentiable and in slices; and back."""

from __future__ import annotations

from typing import Any

import torch
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
        latents = _unscaled(vae, latents)
        pixels = latents.shape[2] * latents.shape[3] * _magnification(vae) ** 2
        slices = latents.to(vae.dtype).split(max(1, SLICE_PIXELS // pixels))
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


def _magnification(vae: Any) -> int:
    """Pixels per latent and side."""
    config = vae.config
    if "temperal_downsample" in config:
        return 2 ** len(config.temperal_downsample)
    return 2 ** (len(config.get("block_out_channels") or config.encoder_block_out_channels) - 1)


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
