"""Initial noise moved out of a memorized prompt's basin, by forward passes alone (Han et al., 2025, "batch-wise")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.rivals.jain import with_scale
from amg.models.base import Condition
from amg.step import Start, Step
from amg.tensors import broadcast, norm


class InitialNoiseAdjustment(Guidance):
    """Walks down the sharpness of d(x) = ε(x, y) − ε(x) at the first timestep, then starts without text:

        x_T ← x_T − gamma (d(x_T + rho d(x_T)/‖d(x_T)‖) − d(x_T))

    once per iteration, for each sample by itself; then unconditional while t > until, and the usual scale after.

    Args:
        rho: length of the look-ahead, in the space of x_T. The authors' 50 for Stable Diffusion 1.4, 30 for 2.
        gamma: step size; 0 leaves x_T as it is.
        iterations: M; the authors' 2 for Stable Diffusion 1.4, 4 for 2. Each costs four network rows per sample.
        until: end of the unconditional steps, a fraction of the schedule in [0, 1]; 1 has none. The authors' 900 of
            1,000 for Stable Diffusion 1.4, 917.45 for 2.

    The authors' rho belongs to latents of 4 × 64 × 64, where ‖x_T‖ is about 128. In general that is √(C·H·W): 50 there
    is 8.8 for 8 × 8 × 8.
    """

    needs_cfg = True

    def __init__(self, rho: float = 50.0, gamma: float = 0.7, iterations: int = 2, until: float = 0.9):
        if not (rho >= 0 and gamma >= 0 and iterations >= 0):
            raise ValueError("guidance: rho, gamma and iterations of han_batch must be >= 0")
        if not 0 <= until <= 1:
            raise ValueError(f"guidance.until must lie in [0, 1], got {until}")
        self.rho, self.gamma, self.iterations, self.until = rho, gamma, iterations, until

    @torch.no_grad()
    def prepare(self, model: Any, prompts, condition: Condition, x_T: Tensor, seeds: Sequence[int], start: Start):
        if start.null is None or self.gamma == 0:
            return condition, x_T

        def difference(x: Tensor) -> Tensor:
            return start.predict(x, condition) - start.predict(x, start.null)

        for _ in range(self.iterations):
            here = difference(x_T)
            length = broadcast(norm(here), here)
            ahead = difference(x_T + self.rho * here / length.clamp(min=torch.finfo(here.dtype).tiny))
            x_T = x_T - self.gamma * (ahead - here)
        return condition, x_T

    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        return with_scale(step, 0.0, step.t > self.until), state
