"""What sampling asks of a model, and conditions as plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

Condition = Tensor | dict[str, Tensor]
"""An encoded condition: one tensor, or several by name, one row per sample."""


class Model(Protocol):
    """A diffusion model as `amg.sampling.sample` sees it.

    Where encoding is slow a model may offer `check(conditions)`, which raises as `encode` does without its cost; and
    where its pictures have a fixed size, `side`, in pixels.
    """

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
        """x_0 to pictures, (B, 3, H, W), about [−1, 1]; differentiable."""
        ...


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


def reachable() -> bool:
    """One try an address and process: the hub's own client tries for half a minute before it gives up."""
    from huggingface_hub import constants

    return _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception:  # of whichever HTTP library the hub's client is built on, or its offline mode
        return False
    return True
