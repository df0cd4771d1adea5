"""Interface of models for sampling, and conditions as plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Condition = Tensor | dict[str, Tensor]
"""An encoded condition: one tensor, or several by name, one row per sample."""


class Model(Protocol):
    """A diffusion model as `amg.sampling.sample` sees it.

    Sampling requires what has no default here; a subclass inherits the rest, which experiments ask for.
    """

    side: int | None = None
    """Resolution of its images, in pixels; None if it samples any."""
    classes: Sequence[str] = ()
    """Names of its labels 0 … n − 1; () if it takes none."""
    digest: str | None = None
    """A hash of its weights; None if its configuration alone decides what it predicts."""
    has_attention = False
    """Says that its `unet` attends to text, so that edits of cross-attention reach it."""
    has_text_encoder = False
    """Says that it takes any text, by way of embeddings: a guidance may rewrite the one and edit the other."""
    learns_variance = False
    """Says that its network predicts the variance of x_{t−1} too."""

    denoise: Callable[[Tensor, Tensor, Condition | None], Tensor] | None = None
    """denoise(x_t, ᾱ_t, condition) -> E[x_0 | x_t, condition] at any ᾱ_t in [0, 1], (B,), not those of the scheduler
    alone; None for a network that knows no others."""

    pipeline: Any = None
    """The diffusers pipeline that samples it, under `guard`; None for a network that `sample` asks step by step."""

    scheduler: Any
    """A diffusers scheduler; its config names the noise schedule and what the network predicts."""
    shape: tuple[int, int, int]
    """(C, H, W) of x_t."""
    device: torch.device
    dtype: torch.dtype

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor | None]:
        """The network's output, as the scheduler's prediction type says, and its variance channels or None."""
        ...

    def encode(self, conditions: Sequence[str | int | None]) -> Condition | None:
        """Prompts, labels, or None for no condition, to one row each; None where the model knows no condition."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x_0 to images, (B, 3, H, W), about [−1, 1]; differentiable."""
        ...

    def check(self, conditions: Sequence[str | int | None]) -> None:
        """Raises as `encode` does; a model whose encoding is slow does it without that cost."""
        self.encode(conditions)


def take(condition: Condition | None, rows: Tensor) -> Condition | None:
    """Some rows of a condition."""
    if condition is None:
        return None
    if isinstance(condition, dict):
        return {name: value[rows.to(value.device)] for name, value in condition.items()}
    return condition[rows.to(condition.device)]


def join(first: Condition, second: Condition) -> Condition:
    """The rows of one condition after those of another."""
    if isinstance(first, dict):
        return {name: torch.cat([first[name], second[name]]) for name in first}
    return torch.cat([first, second])
