"""The world's own law without its planted points: what clearing the copies must cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.step import Start


class Oracle(Guidance):
    """Samples the exact law without its planted points, in both branches of classifier-free guidance.

    A condition of the closed form is log p(component | condition); that of a point becomes −∞. The denoiser D of the
    law becomes the exact safe denoiser D + β* (D − D_unsafe) (Kim et al., 2025), with
    β* = p(unsafe) p_t(x_t | unsafe) / (p(safe) p_t(x_t | safe)).
    """

    needs_points = True

    def prepare_null(self, model: Any, null: Tensor, seeds: Sequence[int]) -> Tensor:
        return _without_points(model, null, len(seeds))

    def prepare(self, model: Any, prompts, condition: Tensor | None, x_T: Tensor, seeds: Sequence[int], start: Start):
        return _without_points(model, condition, len(seeds)), x_T


def _without_points(model: Any, condition: Tensor | None, samples: int) -> Tensor:
    """Returns log weights with −∞ for the points, (B, K); the model's own where there is no condition.

    Raises:
        ValueError: for a model without planted points, or a condition that asks for nothing else.
    """
    if not getattr(model, "has_points", False):
        raise ValueError(
            f"Oracle removes the planted points of a known law, and {type(model).__name__} has none: use ClosedForm"
        )
    if condition is None:
        condition = model.weights.log().expand(samples, -1)
    safe = condition.clone()
    safe[:, : model.points] = -torch.inf
    if (empty := (safe == -torch.inf).all(1)).any():
        raise ValueError(f"oracle: condition {int(empty.nonzero()[0])} asks for planted points alone")
    return safe
