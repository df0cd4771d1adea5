"""The lab's diffusion networks as diffusers' own pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def lab_sd() -> StableDiffusionPipeline:
    """The shipped text-conditional latent diffusion network, 32×32 pictures, in float32.

    The folder itself is `amg.lab.weights.weights("lab_sd")`, for whatever takes a path.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from amg.lab.weights import weights

    pipe = StableDiffusionPipeline.from_pretrained(weights("lab_sd"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
