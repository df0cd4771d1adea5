"""Repulsion of x̂0 from reference images in the space that is sampled: what SPELL, Safe Denoiser and SGF share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.bank.exact import nearest, square_norms
from amg.guidance.base import Guidance
from amg.models.latents import encode_latents
from amg.step import Step
from amg.tensors import broadcast

PROBES = 1000
"""Number of references whose nearest neighbour is looked up for the spacing."""


def of_bank(bank: TrainingBank, model: Any) -> Tensor:
    """Returns the training images in the space that the model samples, (N, C, H, W): VAE latents or pixels.

    Args:
        model: a model or a pipeline of diffusers; its `vae`, if it has one, encodes the images.
    Raises:
        ValueError: if they do not have the shape of the model's samples.
    """
    vae = getattr(getattr(model, "pipe", model), "vae", None)
    # on the model's device once, not at every step
    images = bank.pictures[:]
    references = images.to(model.device) if vae is None else encode_latents(vae, images)
    shape = getattr(model, "shape", None)
    if shape is not None and references.shape[1:] != tuple(shape):
        raise _wrong_shape(references, shape)
    return references


class Repulsion(Guidance):
    """Replaces x̂0 by x̂0 + scale · force(x̂0); a subclass says what the force is.

    No network call, no decoding and no gradient. Samples without a force keep their bits.

    Args:
        references: (N, C, H, W) in the space of the samples; see `of_bank`.
        scale: >= 0; 0 is plain sampling.
        until: acts while t >= until, a fraction of the schedule in [0, 1].
    """

    def __init__(self, references: Tensor, scale: float, until: float):
        if not scale >= 0:  # NaN fails too
            raise ValueError(f"guidance.scale must be >= 0, got {scale}")
        if not 0 <= until <= 1:
            raise ValueError(f"guidance.until must lie in [0, 1], got {until}")
        if references.ndim != 4 or not len(references):
            raise ValueError(f"guidance.references must be (N, C, H, W) with N > 0, got {tuple(references.shape)}")
        self.references, self.scale, self.until = references, scale, until

    def force(self, x0: Tensor, references: Tensor, seeds: Sequence[int]) -> Tensor:
        """Returns the force on each sample, (B, D).

        Args:
            x0: x̂0, (B, D), in float32 at least.
            references: (N, D).
            seeds: of the B samples.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        if self.scale == 0:
            return step.eps, state
        if step.x0.shape[1:] != self.references.shape[1:]:
            raise _wrong_shape(self.references, step.x0.shape[1:])
        rows = (step.finite & (step.t >= self.until)).nonzero().flatten()
        if not len(rows):
            return step.eps, state
        x0 = step.x0[rows].flatten(1)
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        force = self.scale * self.force(x0, self.references.flatten(1).to(x0), [step.seeds[i] for i in rows.tolist()])
        moved = force.any(1).nonzero().flatten()
        if not len(moved):
            return step.eps, state
        rows, x0 = rows[moved], (x0 + force)[moved].view(-1, *step.x0.shape[1:])
        return step.eps.index_put((rows,), eps_of_x0(step, rows, x0).to(step.eps)), state


def eps_of_x0(step: Step, rows: Tensor, x0: Tensor) -> Tensor:
    """Returns the ε of some rows for which x̂0 is another (Eq. 12), (R, C, H, W); x_t stays.

    Args:
        rows: (R,).
        x0: (R, C, H, W).
    """
    alpha_bar = broadcast(step.alpha_bar[rows]).to(x0)
    return (step.x_t[rows] - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def distances(x0: Tensor, references: Tensor) -> Tensor:
    """Returns ‖x̂0 − z_k‖₂ of samples (B, D) and references (N, D), (B, N); exact for the nearest reference.

    The others are computed by a matrix product, which loses digits only where a distance is small.
    """
    table = torch.cdist(x0, references)
    index = table.argmin(1, keepdim=True)
    return table.scatter(1, index, torch.linalg.vector_norm(x0 - references[index[:, 0]], dim=1, keepdim=True))


def away(x0: Tensor, references: Tensor, weights: Tensor) -> Tensor:
    """Returns Σ_k w_k (x̂0 − z_k), (B, D), for weights (B, N)."""
    return weights.sum(1, keepdim=True) * x0 - weights @ references


def spacing(references: Tensor) -> float:
    """Returns the median distance of a reference to its nearest other; of the first 1,000 as a sample of all.

    Raises:
        ValueError: for fewer than two references.
    """
    if len(references) < 2:
        raise ValueError("guidance.references: a distance between them needs at least 2, got 1")
    flat = references.flatten(1).float()
    return nearest(flat[:PROBES], flat, square_norms(flat), 2)[0][:, 1].median().item()


def _wrong_shape(references: Tensor, shape: Sequence[int]) -> ValueError:
    return ValueError(
        f"guidance.references are {tuple(references.shape[1:])}, the samples {tuple(shape)}: load the bank with the "
        "size of the model's images (data.size=…)"
    )
