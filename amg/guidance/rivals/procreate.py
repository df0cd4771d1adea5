"""Descent of the similarity to the nearest reference at every step (ProCreate, Lu et al., ECCV 2024)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from amg.guidance.anti_memorization import GRADIENTS, similarity_gradient
from amg.guidance.base import Guidance, require_gradients
from amg.guidance.terms import dissimilarity
from amg.similarity.base import Similarity
from amg.step import Asked, Step
from amg.tensors import broadcast, finite_rows, norm


class ProCreate(Guidance):
    """Adds the gradient of the similarity of the decoded x̂0 to its nearest reference, of bounded length, to ε:

        ε ← ε + √(1−ᾱ_t) clip(scale ∇_{x_t} σ_t),   ‖clip(·)‖ <= clip · scale

    It is AMG's G_sim at every step and for every sample, without a threshold. A gradient that is zero or not finite
    adds nothing.

    Args:
        similarity: σ_t; it brings the references. The authors' is the cosine of DreamSim.
        scale: the authors' w; 0 is plain sampling. None: their 250 for latents of 4 × 64 × 64, and in proportion to
            √(C·H·W), as ‖ε‖ grows, for others.
        clip: largest length, as a share of scale.
        gradient: how ∇ passes x̂0(x_t), as in AMG. The authors' `through_unet` takes one more forward and one backward
            pass of the denoiser per sample and step.
    """

    def __init__(
        self, similarity: Similarity, scale: float | None = None, clip: float = 0.5, gradient: str = "through_unet"
    ):
        for name, value in (("scale", scale), ("clip", clip)):
            if value is not None and not value >= 0:  # NaN fails too
                raise ValueError(f"guidance.{name} must be >= 0, got {value}")
        if gradient not in GRADIENTS:
            raise ValueError(f"guidance.gradient: unknown {gradient}; choose {' or '.join(GRADIENTS)}")
        self.similarity, self.scale, self.clip, self.gradient = similarity, scale, clip, gradient

    def attach(self, model: Any, asked: Asked) -> AbstractContextManager:
        """Changes nothing; refuses weights that no gradient passes."""
        if self.scale != 0:
            network = (getattr(model, "unet", None),) if self.gradient == "through_unet" else ()
            similarity = getattr(self.similarity, "modules", (self.similarity,))
            require_gradients(*network, getattr(model, "vae", None), *similarity)
        return nullcontext()

    @torch.no_grad()
    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        rows = step.finite.nonzero().flatten()
        if self.scale == 0 or not len(rows):
            return step.eps, state
        scale = 250 * (step.eps[0].numel() / (4 * 64 * 64)) ** 0.5 if self.scale is None else self.scale
        gradient = scale * similarity_gradient(self.similarity, step, rows, self.gradient)
        gradient = torch.where(broadcast(finite_rows(gradient)), gradient, 0)
        length = norm(gradient)
        shorter = (self.clip * scale / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
        change = dissimilarity(broadcast(shorter, gradient) * gradient, step.alpha_bar[rows], 1.0)
        return step.eps.index_put((rows,), step.eps[rows] + change.to(step.eps)), state
