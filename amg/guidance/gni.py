"""Gaussian noise on the prompt's embedding ("GNI", Somepalli et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.draws import noise_of
from amg.models.base import Condition
from amg.step import Start


class GaussianNoiseInput(Guidance):
    """e ← e + scale · N(0, I), on the embeddings of the prompt and of the null condition alike.

    Args:
        scale: λ; the authors' 0.1.

    Of a condition with several parts the sequence of token embeddings alone is noised.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, scale: float = 0.1):
        if not scale >= 0:
            raise ValueError(f"guidance.scale must be >= 0, got {scale}")
        self.scale = scale

    def prepare_null(self, model: Any, null: Condition, seeds: Sequence[int]) -> Condition:
        return self._noised(null, "gni null", seeds)

    def prepare(self, model: Any, prompts, condition: Condition, x_T: Tensor, seeds: Sequence[int], start: Start):
        return self._noised(condition, "gni prompt", seeds), x_T

    def _noised(self, condition: Condition | None, stream: str, seeds: Sequence[int]) -> Condition | None:
        if isinstance(condition, dict):
            name = "encoder_hidden_states"
            return {**condition, name: self._noised(condition[name], stream, seeds)}
        if condition is None:
            return None
        shape = condition.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=noise_of(stream, seed)) for seed in seeds])
        return condition + self.scale * noise.to(condition)
