"""AMG as its authors released it for CIFAR-10 (their fork of improved-diffusion), option by option."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.guidance.anti_memorization import MIN_ALPHA_BAR
from amg.guidance.base import Guidance
from amg.step import Step
from amg.tensors import broadcast, floats, norm
from amg.thresholds import Exponential, Threshold


@dataclass(frozen=True)
class ReleasedState:
    """State of the method; one row per sample."""

    similarity: Tensor
    """−nL2, (B,); NaN while it rests."""
    index: Tensor
    """The nearest training image, (B,); −1 while it rests."""
    threshold: Tensor
    """λ_t, (B,)."""
    flagged: Tensor
    """True if the sample was guided, (B,) bool."""
    armed: Tensor
    """True if guidance has begun, (B,) bool."""
    quiet: Tensor
    """Armed steps in a row without guidance, (B,)."""
    rest: Tensor
    """Steps of rest to come, (B,)."""
    sim: Tensor
    """‖push‖₂, (B,)."""
    push: Tensor
    """g = strength (σ − λ_t) ∇nL2, (B, C, H, W); 0 where not flagged."""


class ReleasedIDDPM(Guidance):
    """Pushes x_{t−1} by Σ g away from the training image that x_t resembles, g = strength (λ_t − nL2) ∇nL2.

    Each option is a departure of the released code from the paper; its default is the code's.

    Args:
        bank: training images, deduplicated (`amg.bank.dedupe`).
        threshold: λ_t on −nL2. Code: 1.95 − 0.45 exp(−0.025 t), t the respaced step 0 … 249; paper: "parabolic".
        k, scale: of nL2 (Eq. 8); as in the paper.
        noised: nL2 is that of x_t to training images freshly noised to level t. Paper (False): of x̂0 to clean ones.
        redraw: the neighbour is noised once more before its gradient is taken. False: it keeps the noise it was found
            with. The paper has no such noise.
        arm: guidance begins at the first step with nL2 < arm. Paper: at once (None).
        strength: code: 1000 · 80. Paper: c3, of another scale.
        adaptive: the strength is multiplied by λ_t − nL2. Paper (False): it is constant.
        through: "mean" adds Σ g to the posterior mean, which x̂0's clipping cannot undo. Paper: "eps" subtracts
            √(1−ᾱ) g from ε (Eq. 17).
        quiet, rest: after so many armed steps in a row without guidance the search rests. The comment in the code says
            for 10 steps; it rests 5, because the unguided trajectory beside it counts down too. Paper: rest=0.

    One trajectory is drawn, not two: the unguided twin is a run with guidance=none.
    """

    needs_variance = True  # for through="mean"
    compares_pixels = True

    def __init__(
        self,
        bank: TrainingBank,
        threshold: Threshold = Exponential(start=-1.5, end=-1.95, rate=0.025 * 249),  # noqa: B008 (frozen)
        k: int = 50,
        scale: float = 0.5,
        noised: bool = True,
        redraw: bool = True,
        arm: float | None = 1.5,
        strength: float = 1000 * 80,
        adaptive: bool = True,
        through: str = "mean",
        quiet: int = 3,
        rest: int = 5,
    ):
        if through not in ("mean", "eps"):
            raise ValueError(f"guidance.through must be mean or eps, got {through!r}")
        if quiet < 1 or rest < 0:
            raise ValueError(f"guidance.quiet must be >= 1 and guidance.rest >= 0, got {quiet} and {rest}")
        if not 2 <= k <= len(bank):
            raise ValueError(f"guidance.k must lie in 2 … {len(bank)} (the bank's distinct images), got {k}")
        self.bank, self.threshold, self.k, self.scale = bank, threshold, k, scale
        self.noised, self.redraw, self.arm = noised, redraw, arm
        self.strength, self.adaptive, self.through = strength, adaptive, through
        self.quiet, self.rest = quiet, rest

    @torch.no_grad()
    def __call__(self, step: Step, state: ReleasedState | None) -> tuple[Tensor, ReleasedState]:
        if self.through == "mean" and step.variance is None:
            raise ValueError(
                "guidance.through=mean needs the variance that iddpm_cifar10 learns, drawn with sampler=ddpm; "
                "other models take guidance.through=eps"
            )
        old = self._begin(step) if state is None else state
        awake = old.rest == 0
        rows = awake.nonzero().flatten()
        similarity = torch.full_like(old.similarity, torch.nan)
        index = torch.full_like(old.index, -1)
        gradient = torch.zeros_like(step.x_t)
        if len(rows):
            value, index[rows], gradient[rows] = self._measure(step, rows)
            similarity[rows] = value.to(similarity)
        threshold = torch.as_tensor(self.threshold(step.t)).to(similarity).expand_as(similarity)
        armed = old.armed | (similarity > (-torch.inf if self.arm is None else -self.arm))
        flagged = armed & (similarity > threshold)  # NaN is neither
        margin = (similarity - threshold) if self.adaptive else torch.ones_like(similarity)
        push = torch.where(broadcast(flagged), broadcast(self.strength * margin).to(gradient) * gradient, 0)
        state = ReleasedState(
            similarity,
            index,
            threshold,
            flagged,
            armed,
            **self._count(old, awake & armed, flagged),
            sim=norm(push),
            push=push,
        )
        if self.through == "mean" or not flagged.any():
            return step.eps, state
        change = (1 - broadcast(step.alpha_bar)).sqrt().to(push) * push
        return torch.where(broadcast(flagged), step.eps - change, step.eps), state

    def shift(self, step: Step, eps: Tensor, state: ReleasedState, x_prev: Tensor) -> Tensor | None:
        """Σ g of the flagged samples."""
        if self.through != "mean" or not state.flagged.any():
            return None
        return step.variance * state.push

    def _count(self, old: ReleasedState, active: Tensor, flagged: Tensor) -> dict[str, Tensor]:
        """The next `quiet` and `rest`: resting samples count down, active ones count their quiet steps."""
        quiet = torch.where(active, torch.where(flagged, 0, old.quiet + 1), old.quiet)
        tired = active & (quiet >= self.quiet)
        rest = torch.where(tired, self.rest, (old.rest - 1).clamp(min=0))
        return {"quiet": torch.where(tired, 0, quiet), "rest": rest}

    def _begin(self, step: Step) -> ReleasedState:
        ones = torch.ones_like(step.alpha_bar, dtype=torch.promote_types(step.x_t.dtype, torch.float32))
        no, count = ones.bool() & False, ones.long() * 0
        return ReleasedState(ones, count, ones, no, no, count, count, ones, step.x_t)

    def _measure(self, step: Step, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """σ = −nL2 (R,), the nearest images (R,) and ∇nL2 with respect to x_t (R, C, H, W)."""
        alpha_bar = step.alpha_bar[rows][:, None]
        if not self.noised:
            still = replace(step, x_t=step.x0, alpha_bar=torch.ones_like(step.alpha_bar))
            similarity, index, gradient = self._near(still, rows, [None] * len(rows))
            # as in AMG, nothing where x̂0 hardly depends on x_t: 1/√ᾱ would throw the trajectory away
            slope = torch.where(alpha_bar < MIN_ALPHA_BAR, 0, alpha_bar.rsqrt())
            return similarity, index, broadcast(slope).to(gradient) * gradient
        draws = [np.random.default_rng([step.seeds[row], int(step.timestep)]) for row in rows.tolist()]
        return self._near(step, rows, draws)

    def _near(self, step: Step, rows: Tensor, draws: list[np.random.Generator | None]):
        x = step.x_t[rows].flatten(1)
        keys, norms = self.bank.pixel_keys(x.device, x.dtype)
        if step.x_t.shape[1:] != self.bank.shape:
            raise ValueError(
                f"samples are {tuple(step.x_t.shape[1:])}, the bank's images {self.bank.shape}: "
                "released_iddpm compares pixels: load the bank with size=(height, width) of the samples"
            )
        x = x.to(norms)
        signal = step.alpha_bar[rows][:, None].sqrt().to(x)
        noise = (1 - signal.square()).clamp(min=0).sqrt()
        products = torch.cat([x @ floats(part).to(x).T for part in keys.split(16384)], 1)
        squares = x.square().sum(1, keepdim=True) - 2 * signal * products + signal.square() * norms
        distances = squares.clamp(min=0).sqrt()  # of x_t to √ᾱ z, (R, N)
        along = across = None
        if draws[0] is not None:
            along, across = self._noise(draws, x)
            # ‖x − √ᾱ z − √(1−ᾱ) ξ‖² needs of ξ ~ N(0, I) only u, its part along x − √ᾱ z, and the square norm of the
            # rest, chi-square with D − 1 degrees: the exact law of N noised images from 2 N numbers
            distances = ((distances - noise * along).square() + noise.square() * across).sqrt()
        near, places = distances.topk(self.k, dim=1, largest=False)
        mean, index = near.mean(1), places[:, 0]
        target = signal * floats(keys[index]).to(x)
        if draws[0] is not None:
            found = (table.gather(1, index[:, None]) for table in (along, across))
            target = target + noise * self._neighbour_noise(draws, x - target, *found)
        difference = x - target
        length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        gradient = difference / length.clamp(min=1e-12) / (self.scale * mean[:, None])
        return -near[:, 0] / (self.scale * mean), index, gradient.view(step.x_t[rows].shape).to(step.x_t)

    def _noise(self, draws: list[np.random.Generator], x: Tensor) -> tuple[Tensor, Tensor]:
        """u ~ N(0, 1) and c ~ χ²(D − 1) for each training image, (R, N) each; drawn on the CPU, seed by seed."""
        pairs = [(rng.standard_normal(len(self.bank)), rng.chisquare(x.shape[1] - 1, len(self.bank))) for rng in draws]
        return tuple(torch.from_numpy(np.stack(part)).to(x) for part in zip(*pairs, strict=True))

    def _neighbour_noise(self, draws: list[np.random.Generator], away: Tensor, along: Tensor, across: Tensor) -> Tensor:
        """The neighbour's noise ξ, (R, D): drawn anew, or any that has the (u, c) with which it was found."""
        fresh = torch.from_numpy(np.stack([rng.standard_normal(away.shape[1]) for rng in draws])).to(away)
        if self.redraw:
            return fresh
        unit = away / torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp(min=1e-12)
        beside = fresh - (fresh * unit).sum(1, keepdim=True) * unit
        return along * unit + across.sqrt() * beside / torch.linalg.vector_norm(beside, dim=1, keepdim=True)
