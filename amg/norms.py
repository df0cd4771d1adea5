"""The norms of ordinary chains, with which `amg.guidance.broken_memories` compares others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.broken_memories import Norms, norm
from amg.models.base import Model
from amg.sampling import sample
from amg.step import Step


def learn_norms(
    model: Model,
    seeds: Sequence[int],
    prompts: Sequence[str | int] | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Norms:
    """Draws one unguided chain per seed and measures ‖x̂0‖, ‖x_{t−1} − x_t‖ and ‖x_{t−1}‖ at each step.

    Args:
        prompts: ordinary prompts or labels, one per seed; None draws without condition.
        options: of `amg.sampling.sample`; the chains to be compared must have the same s0, scheduler, steps and eta.
    Raises:
        ValueError: for fewer than two seeds, which have no standard deviation.
    """
    if len(seeds) < 2:
        raise ValueError(f"norms have a mean and a standard deviation: give two seeds at least, got {len(seeds)}")
    found = []
    for start in range(0, len(seeds), batch_size):
        some = slice(start, start + batch_size)
        watch = _Watch()
        sample(model, seeds[some], guidance=watch, prompts=prompts and prompts[some], **options)
        found.append(torch.stack(watch.norms, dim=1))
    norms = torch.cat(found, dim=2).double().cpu()  # (3, T, n)
    return Norms(torch.tensor(watch.times), *torch.stack([norms.mean(2), norms.std(2)], dim=2))


class _Watch(Guidance):
    """Takes notes of one batch."""

    def __init__(self):
        self.times: list[float] = []
        self.norms: list[Tensor] = []

    def shift(self, step: Step, eps: Tensor, state: Any, x_prev: Tensor) -> None:
        self.times.append(step.t[0].item())
        self.norms.append(torch.stack([norm(step.x0), norm(x_prev - step.x_t), norm(x_prev)]))
