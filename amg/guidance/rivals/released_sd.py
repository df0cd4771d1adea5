"""AMG as its authors released it for Stable Diffusion (their fork of latent-diffusion), option by option."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amg.guidance.anti_memorization import MIN_ALPHA_BAR
from amg.guidance.base import Guidance, require_gradients
from amg.guidance.captions import CommonCaption
from amg.guidance.terms import deduplication_scale, despecification_scale, dissimilarity
from amg.similarity.base import Similarity, measure
from amg.step import Asked, Step
from amg.tensors import broadcast, norm
from amg.thresholds import Exponential, Threshold


@dataclass(frozen=True)
class ReleasedState:
    """State of the method; one row per sample."""

    similarity: Tensor
    """σ_t of x̂0 before any guidance, (B,)."""
    index: Tensor
    """Its nearest training image, (B,)."""
    threshold: Tensor
    """λ_t, (B,)."""
    flagged: Tensor
    """σ_t > λ_t, (B,) bool; G_spe acts on others too, as its option says."""
    hold: Tensor
    """Steps for which G_dup stays armed after this one, (B,)."""
    caption: Tensor
    """The caption that armed it, as an index into the captions that were met, (B,); −1 for none."""
    after: Tensor
    """σ_t measured again, after G_spe and G_dup, (B,)."""
    s1: Tensor
    s2: Tensor
    spe: Tensor
    """‖G_spe‖₂, (B,)."""
    dup: Tensor
    """‖G_dup‖₂, (B,)."""
    sim: Tensor
    """‖G_sim‖₂, (B,)."""
    dropped: Tensor
    """True if G_sim was dropped because its gradient was not finite, (B,) bool."""


class ReleasedSD(Guidance):
    """G_spe whenever σ_t > 0; G_dup on σ_t > λ_t; then σ_t anew, and G_sim where it is still above λ_t.

        ε ← ε − s1 (ε_c − ε_u) − s2 (ε_N − ε_u),   s1 = min(c1 σ, s0 − 1),   s2 = min((s0 − 1 − s1)/divisor σ, …)
        ε ← ε + c3 √(1−ᾱ) ∇σ (σ − base) exp((1 − 0.999 t) · growth)

    Each option is a departure of the released code from the paper; its default is the code's.

    Args:
        similarity: σ_t, with a bank of captioned images. Code: SSCD with preprocessing `amg_release` and
            the norm of its descriptor in the gradient, `norm_gradient=True`, as on the command line.
        threshold: λ_t. Code: 0.3 + 0.1 exp(−0.005 t), t in 0 … 999; paper: "parabolic".
        c1: code: 6.5 / 0.5.
        gated: G_spe acts only where σ_t > λ_t. Paper: True; code: wherever σ_t > 0.
        divisor: s2 grows with σ at the rate (s0 − 1 − s1)/divisor. Paper (None): at the constant rate c2.
        c2: that constant rate, used where divisor is None.
        neighbours, count: G_dup is armed by the most common caption among so many nearest images, if it occurs more
            than `count` times. Paper (neighbours=1, count=0): the caption of the nearest image.
        hold: further steps for which G_dup stays armed. Paper: 0.
        remeasure: σ_t is measured again before G_sim. Paper (False): it is measured once.
        c3: code: 100.
        base, growth: course of G_sim's strength; code: 0.3 and 1000/170, growing as t falls. Paper (base=None): the
            strength is c3 alone.

    The code writes 6.5 for s0 − 1, which is the same at its s0 of 7.5. Its first 21 images pass unguided, by a
    counter that begins at 0; that is left out, since an image depends on its seed alone. And where ᾱ < `MIN_ALPHA_BAR`
    G_sim rests here, as in AMG.
    """

    def __init__(
        self,
        similarity: Similarity,
        threshold: Threshold = Exponential(start=0.4, end=0.3, rate=0.005 * 999),  # noqa: B008 (frozen)
        c1: float = 6.5 / 0.5,
        gated: bool = False,
        divisor: float | None = 0.3,
        c2: float = 0.0,
        neighbours: int = 1000,
        count: int = 20,
        hold: int = 10,
        remeasure: bool = True,
        c3: float = 100.0,
        base: float | None = 0.3,
        growth: float = 1000 / 170,
    ):
        if not hasattr(similarity, "neighbours"):
            raise ValueError("guidance.similarity: released_sd counts captions and needs one that lists neighbours")
        if neighbours < 1 or count < 0 or hold < 0:
            raise ValueError("guidance: released_sd needs neighbours >= 1, count >= 0 and hold >= 0")
        self.similarity, self.threshold = similarity, threshold
        self.c1, self.gated, self.divisor, self.c2 = c1, gated, divisor, c2
        self.neighbours, self.count, self.hold = neighbours, count, hold
        self.remeasure, self.c3, self.base, self.growth = remeasure, c3, base, growth
        self._common = CommonCaption(similarity.bank.all_captions, similarity.bank.multiplicity, count)

    @property
    def embeds_captions(self) -> bool:
        return self._common.any

    def attach(self, model: Any, asked: Asked) -> AbstractContextManager:
        """Changes nothing; refuses weights that G_sim cannot take a gradient through."""
        if self.c3 > 0:
            require_gradients(getattr(model, "vae", None), *getattr(self.similarity, "modules", (self.similarity,)))
        return nullcontext()

    @torch.no_grad()
    def __call__(self, step: Step, state: ReleasedState | None) -> tuple[Tensor, ReleasedState]:
        images = step.decode(step.x0)
        similarity, index = measure(self.similarity, images)
        threshold = torch.as_tensor(self.threshold(step.t)).to(similarity).expand_as(similarity)
        flagged = similarity > threshold
        zeros = torch.zeros_like(similarity)
        hold = torch.zeros_like(index) if state is None else state.hold
        caption = torch.full_like(index, -1) if state is None else state.caption
        acted = {"s1": zeros, "s2": zeros, "spe": zeros, "dup": zeros}
        edited = step
        if step.eps_cond is not None:
            armed, caption, hold = self._arm(images, flagged, caption, hold)
            edited, acted = self._towards_text(step, similarity, flagged, armed, caption)
        after = similarity
        if self.remeasure and edited is not step:
            after = measure(self.similarity, step.decode(edited.x0)).value
        edited, sim, dropped = self._away(edited, after, after > threshold)
        seen = ReleasedState(
            similarity, index, threshold, flagged, hold, caption, after, **acted, sim=sim, dropped=dropped
        )
        return edited.eps, seen

    def _arm(self, images: Tensor, flagged: Tensor, caption: Tensor, hold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the rows that G_dup acts on, the caption of each, and the number of steps that are left."""
        rows = flagged.nonzero().flatten()
        found = torch.full_like(caption, -1)
        if len(rows):
            k = min(self.neighbours, len(self.similarity.bank))
            found[rows] = self._common(self.similarity.neighbours(images[rows], k)).to(found)
        fresh = found >= 0
        caption = torch.where(fresh, found, caption)
        armed = fresh | (hold > 0)
        hold = torch.where(fresh, self.hold, (hold - 1).clamp(min=0))
        return armed, torch.where(armed, caption, -1), hold

    def _towards_text(self, step: Step, similarity: Tensor, flagged: Tensor, armed: Tensor, caption: Tensor):
        """The step after G_spe and G_dup."""
        s1 = despecification_scale(similarity, step.s0, self.c1)
        if self.gated:
            s1 = torch.where(flagged, s1, 0)
        c2 = self.c2 if self.divisor is None else (step.s0 - 1 - s1).clamp(min=0) / self.divisor
        s2 = torch.where(armed, deduplication_scale(similarity, step.s0, s1, c2), 0)
        eps, acted = step.eps, {"s1": s1, "s2": s2, "spe": torch.zeros_like(s1), "dup": torch.zeros_like(s1)}
        rows = (s1 > 0).nonzero().flatten()
        if len(rows):
            spe = -broadcast(s1[rows], eps) * (step.eps_cond[rows] - step.eps_uncond[rows])
            eps = eps.index_put((rows,), eps[rows] + spe)
            acted["spe"] = acted["spe"].index_put((rows,), norm(spe).to(s1))
        rows = (s2 > 0).nonzero().flatten()
        if len(rows):  # no network call where the scale is 0
            names = [self._common.names[i] for i in caption[rows].tolist()]
            dup = -broadcast(s2[rows], eps) * (step.denoise(rows, names) - step.eps_uncond[rows])
            eps = eps.index_put((rows,), eps[rows] + dup)
            acted["dup"] = acted["dup"].index_put((rows,), norm(dup).to(s1))
        return (step if eps is step.eps else step.with_eps(eps)), acted

    def _away(self, step: Step, similarity: Tensor, flagged: Tensor) -> tuple[Step, Tensor, Tensor]:
        """The step after G_sim, its norms, and which gradients were dropped."""
        norms, dropped = torch.zeros_like(similarity), torch.zeros_like(flagged)
        rows = (flagged & (step.alpha_bar.to(similarity) >= MIN_ALPHA_BAR)).nonzero().flatten()
        if self.c3 == 0 or not len(rows):
            return step, norms, dropped
        with torch.inference_mode(False), torch.enable_grad():
            x0 = step.x0[rows].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.similarity(step.decode(x0)).value.sum(), x0)
        gradient = gradient / broadcast(step.alpha_bar[rows].sqrt(), gradient)  # x̂0 is linear in x_t, ε held fixed
        finite = gradient.flatten(1).isfinite().all(1)
        gradient = torch.where(broadcast(finite), gradient, 0)
        strength = torch.full_like(similarity[rows], self.c3)
        if self.base is not None:
            course = torch.exp((1 - 0.999 * step.t[rows]).to(strength) * self.growth)  # t is 999 steps of 1000
            strength = (strength * (similarity[rows] - self.base) * course).clamp(min=0)
        sim = dissimilarity(gradient, step.alpha_bar[rows], strength)
        eps = step.eps.index_put((rows,), step.eps[rows] + sim)
        norms = norms.index_put((rows,), norm(sim).to(norms))
        return replace(step, eps=eps), norms, dropped.index_put((rows,), ~finite)
