"""Any text-to-image pipeline of diffusers as a model of experiments: it samples itself, under `guard`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg.models.base import Condition, Model
from amg.models.latents import LatentDecoder
from amg.models.stable_diffusion import check_prompts, load
from amg.models.stable_diffusion import fetch as fetch
from amg.models.stable_diffusion import find as find  # what a component's module says of files that are missing
from amg.tensors import sketch_of


class Pipeline(Model):
    """A pipeline that `amg.sampling.guard` knows, such as Stable Diffusion 3.

    Args:
        source: a folder in diffusers' format, a name on the hub, or a pipeline in memory. Components that the folder
            leaves out, such as T5, stay out.
        size: resolution of the images in pixels; the model's own where None.
        max_sequence_length: of the pipeline's call; its default where None.
        variant: e.g. `fp16`, for folders that hold several.
        device, dtype: of the networks and the latents; a dtype or its name. A pipeline in memory keeps its own dtype.
    Raises:
        FileNotFoundError: where the model is neither on disk nor to be fetched.
        ValueError: for a size that the pipeline cannot sample.
    """

    has_text_encoder = True

    def __init__(
        self,
        source: str | Path | Any,
        size: int | None = None,
        max_sequence_length: int | None = None,
        variant: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ):
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        pipe = load(source, variant, dtype) if isinstance(source, (str, Path)) else source
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        self.pipeline, self.scheduler, self.device = pipe, pipe.scheduler, torch.device(device)
        self.denoiser = network = pipe.transformer if "transformer" in pipe.components else pipe.unet
        self.dtype, factor = network.dtype, pipe.vae_scale_factor
        self.side = size or getattr(pipe, "default_sample_size", network.config.sample_size) * factor
        if self.side % factor:
            raise ValueError(f"model.size must be a multiple of {factor}, got {size}")
        channels = pipe.vae.config.get("latent_channels") or pipe.vae.config.z_dim
        self.shape = (channels, self.side // factor, self.side // factor)
        self.options = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
            self.options["use_resolution_binning"] = False  # the size is `size`, not the nearest of the pipeline's own
        self.decode_latents = LatentDecoder(pipe.vae)
        self._checked: set[str] = set()

    @cached_property
    def digest(self) -> str:
        """Hash of a sample of the denoiser's weights: it names the network in a run's record."""
        return sketch_of(self.denoiser)

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> tuple[Tensor, None]:
        """Refuses: the pipeline alone knows how its network is asked."""
        raise ValueError(f"{type(self.pipeline).__name__} samples itself: it cannot be asked for one step alone")

    def encode(self, conditions: Sequence[str | None]) -> Condition:
        """Refuses as a call does."""
        raise ValueError(f"{type(self.pipeline).__name__} encodes prompts itself: give prompts in words")

    def check(self, conditions: Sequence[str | None]) -> None:
        """Looks at prompts; says once of each that it is too long.

        Raises:
            ValueError: for a prompt that is empty or no string.
        """
        check_prompts(conditions, self.pipeline.tokenizer, self._checked)

    def decode(self, x0: Tensor) -> Tensor:
        """Latents to images, (B, 3, H, W), about [−1, 1]."""
        return self.decode_latents(x0)
