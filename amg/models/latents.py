"""Latents to pictures, the way the pipelines of diffusers do it, but differentiable and in slices."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SLICE_PIXELS = 512 * 512
"""Pictures decoded at once hold at most so many pixels, or are one: memory does not grow with the batch."""


class LatentDecoder:
    """Decodes latents with a VAE of diffusers.

    Under `torch.enable_grad` each slice is recomputed in the backward pass, so that a gradient needs the memory of
    one slice only. A float16 VAE that overflows (`force_upcast`) is decoded by a float32 copy, made at first need.
    """

    def __init__(self, vae: Any):
        self.vae, self._copy = vae, None

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, H, W), about [−1, 1]; float32 where the VAE is in half precision."""
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
        images = torch.cat([self._decode(vae, part) for part in slices])
        return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images

    @staticmethod
    def _decode(vae: Any, latents: Tensor) -> Tensor:
        def decode(part: Tensor) -> Tensor:
            return vae.decode(part, return_dict=False)[0]

        if torch.is_grad_enabled() and latents.requires_grad:
            return checkpoint(decode, latents, use_reentrant=False)
        return decode(latents)

    def _module(self) -> Any:
        if self.vae.dtype != torch.float16 or not self.vae.config.get("force_upcast"):
            return self.vae
        if self._copy is None:
            self._copy = copy.deepcopy(self.vae).float().requires_grad_(False)
        return self._copy
