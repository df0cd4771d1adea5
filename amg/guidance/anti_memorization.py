"""Anti-Memorization Guidance (Chen, Liu, Xu, CVPR 2024), the method of the paper."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.guidance.base import Guidance, require_gradients
from amg.guidance.captions import CommonCaption
from amg.guidance.looks import Looks
from amg.guidance.streams import own_direction
from amg.guidance.terms import deduplication_scale, despecification_scale, dissimilarity
from amg.guidance.watch import Sight, Watch, slope
from amg.similarity.base import Similarity
from amg.step import Asked, Step
from amg.tensors import broadcast, finite_rows, norm
from amg.thresholds import Threshold

TERMS = ("spe", "dup", "sim")
GRADIENTS = ("fixed_eps", "through_unet")
MIN_ALPHA_BAR = 1e-4
"""Below it x_t is noise but for 1 %, and the 1/ᾱ that G_sim gains on its way to x̂0 would throw the trajectory away."""


@dataclass(frozen=True)
class State(Sight):
    """Detection and guidance at one step; one row per sample. The sequence of states is the trace of Figure 3."""

    s1: Tensor
    """Scale of G_spe, (B,)."""
    s2: Tensor
    """Scale of G_dup, (B,)."""
    spe: Tensor
    """‖G_spe‖₂, (B,)."""
    dup: Tensor
    """‖G_dup‖₂, (B,)."""
    sim: Tensor
    """‖G_sim‖₂, (B,)."""
    dropped: Tensor
    """True where ∇σ_t was zero or not finite and G_sim took a direction of the sample's own seed, (B,) bool."""


class AntiMemorizationGuidance(Guidance):
    """Steers a sample away from the training image that it is about to copy (Eq. 10):

        ε ← ε + 1{σ_t > λ_t} (G_spe + G_dup + G_sim)

    Only flagged samples are touched; the others stay bit-identical to unguided ones.

    Args:
        similarity: σ_t; see `amg.similarity`.
        threshold: λ_t; see `amg.thresholds`.
        c1, c2, c3: strengths of G_spe, G_dup and G_sim (Eqs. 13, 15, 17).
        normalize: takes ∇σ_t to unit length, so that ‖G_sim‖ = c3 √(1−ᾱ_t) whatever the similarity and the noise level
            (‖ε‖ is about √(C·H·W)). Off is the paper's Eq. 17; there ∇ of a cosine vanishes as a copy is reached, and
            1/√ᾱ_t makes the same c3 a thousand times stronger at the first step than at the last.
        terms: which guidances act, at least one.
        captions: captions of the training images for G_dup; the bank's where None. G_dup leaves a sample alone whose
            neighbour has none ("" or None).
        gradient: how ∇_{x_t} σ_t of G_sim passes x̂0(x_t). `fixed_eps` holds ε fixed, as in the released code: no
            further call of the denoiser. `through_unet` follows ε(x_t) after CFG too: one more forward and one backward
            pass of the denoiser for each flagged row.
        margin: a sample that was flagged once is held to λ_t − margin from then on. It costs the samples that are never
            flagged nothing. 0 is the paper's Eq. 10, which leaves such a sample just below λ_t.
        looks: when a sample that was never flagged is looked at again, see `Watch`; None looks at every step.
        neighbours, count: G_dup acts by the most common caption among so many nearest training images, if it occurs
            more than `count` times. Paper (1, 0): by the nearest image's caption, always; released code: 1000, 20.
        strong: the same with stronger constants, for images that came out as copies and are drawn again.

    At an exact copy ∇σ_t may be zero (nL2) or not finite. G_sim of such a flagged sample takes a random direction of
    unit length in its place, which the sample's seed alone decides and which is the same at every step.

    G_sim is left out where ᾱ_t < 1e-4. Where there is no condition, or at s0 <= 1, G_spe and G_dup vanish.
    """

    def __init__(
        self,
        similarity: Similarity,
        threshold: Threshold,
        c1: float = 0.0,
        c2: float = 0.0,
        c3: float = 0.0,
        normalize: bool = False,
        terms: Sequence[str] = TERMS,
        captions: Sequence[str] | None = None,
        gradient: str = "fixed_eps",
        margin: float = 0.0,
        neighbours: int = 1,
        count: int = 0,
        looks: Looks | None = None,
        strong: AntiMemorizationGuidance | None = None,
    ):
        terms = (terms,) if isinstance(terms, str) else tuple(terms)
        unknown = sorted(set(terms) - set(TERMS))
        if unknown or not terms:
            problem = f"unknown {', '.join(unknown)}" if unknown else "empty"
            raise ValueError(f"guidance.terms: {problem}; choose among {', '.join(TERMS)}")
        if gradient not in GRADIENTS:
            raise ValueError(f"guidance.gradient: unknown {gradient}; choose {' or '.join(GRADIENTS)}")
        for name, value in (("c1", c1), ("c2", c2), ("c3", c3)):
            if not value >= 0:  # NaN fails too
                raise ValueError(f"guidance.{name} must be >= 0, got {value}")
        if neighbours < 1 or count < 0:
            raise ValueError(f"guidance: neighbours must be >= 1 and count >= 0, got {neighbours} and {count}")
        if "sim" in terms and c3 > 0 and not getattr(similarity, "differentiable", True):
            raise ValueError(
                f"{type(similarity).__name__} has no gradient for G_sim: take it as judge, or guidance.terms=[spe,dup]"
            )
        self.watch = Watch(similarity, threshold, margin, looks, "sim" in terms and c3 > 0 and gradient == "fixed_eps")
        self.similarity = similarity
        self.c1, self.c2, self.c3, self.normalize, self.terms = c1, c2, c3, normalize, terms
        self.captions, self.gradient, self.neighbours = captions, gradient, neighbours
        self._common = None if (neighbours, count) == (1, 0) else self._counter(count)
        self.needs_prompts = "sim" not in self.terms
        self.strong = strong

    def stronger(self) -> AntiMemorizationGuidance:
        return self.strong or self

    @classmethod
    def preset(cls, name: str, bank: TrainingBank, similarity: Similarity | None = None) -> AntiMemorizationGuidance:
        """Named settings, e.g. "sd-main"; see `amg.guidance.presets`."""
        from amg.guidance.presets import preset

        given = preset(name, bank, similarity)
        strong = name.replace("main", "strong")
        strong = None if strong == name else cls(**preset(strong, bank, given["similarity"]))
        return cls(**given, strong=strong)

    def looking(self, looks: Looks | None) -> AntiMemorizationGuidance:
        if looks is self.watch.looks:
            return self
        other = copy.copy(self)
        other.watch = Watch(self.similarity, self.watch.threshold, self.watch.margin, looks, self.watch.slopes)
        other.strong = self.strong and self.strong.looking(looks)
        return other

    def attach(self, model: Any, asked: Asked) -> AbstractContextManager:
        """Changes nothing; refuses weights that G_sim cannot take a gradient through."""
        if "sim" in self.terms and self.c3 > 0:
            names = (*(("unet", "transformer") if self.gradient == "through_unet" else ()), "vae")
            similarity = getattr(self.similarity, "modules", (self.similarity,))
            require_gradients(*(getattr(model, name, None) for name in names), *similarity)
        return nullcontext()

    @property
    def embeds_captions(self) -> bool:
        return "dup" in self.terms and self.c2 > 0 and any(self._given_captions() or ())

    @property
    def lost_without_cfg(self) -> str:
        wanted = [
            name for name, strength in (("spe", self.c1), ("dup", self.c2)) if name in self.terms and strength > 0
        ]
        lost = " and ".join(f"G_{name}" for name in wanted)
        return lost and f"{lost} cannot act, only G_sim"

    @torch.no_grad()
    def __call__(self, step: Step, state: State | None) -> tuple[Tensor, State]:
        if state is None and step.eps_cond is not None and "dup" in self.terms and self.c2 > 0:
            self._look_for_captions()
        sight = self.watch(step, state)
        rows = sight.flagged.nonzero().flatten()
        zeros = torch.zeros_like(sight.similarity)
        trace = {"s1": zeros, "s2": zeros, "spe": zeros, "dup": zeros, "sim": zeros, "dropped": sight.flagged & False}
        eps = step.eps
        if len(rows):
            change, acted = self._guide(step, rows, sight)
            # index_add would also do; a masked copy keeps the other rows' bits whatever the kernel
            eps = eps.clone()
            eps[rows] = eps[rows] + change
            trace = {name: value.index_put((rows,), acted[name]) for name, value in trace.items()}
        return eps, State(**vars(sight), **trace)

    def record(self, state: State) -> dict[str, Tensor]:
        """Returns σ_t, λ_t, the flags, on whom it acted, and the norms of its terms."""
        names = ("similarity", "lam", "flagged", "spe", "dup", "sim", "dropped")
        return {"guided": state.flagged} | {name: getattr(state, name) for name in names}

    def _guide(self, step: Step, rows: Tensor, sight: Sight) -> tuple[Tensor, dict[str, Tensor]]:
        """G_spe + G_dup + G_sim of the flagged rows, (R, C, H, W), and what each contributed."""
        similarity = sight.similarity[rows]
        change = torch.zeros_like(step.eps[rows])
        acted = {name: torch.zeros_like(similarity) for name in ("s1", "s2", "spe", "dup", "sim")}
        acted["dropped"] = torch.zeros_like(rows, dtype=torch.bool)
        if step.eps_cond is not None:
            uncond = step.eps_uncond[rows]
            if "spe" in self.terms:
                s1 = despecification_scale(similarity, step.s0, self.c1)
                change += self._record(acted, "spe", -broadcast(s1, uncond) * (step.eps_cond[rows] - uncond))
                acted["s1"] = s1
            if "dup" in self.terms and self.c2 > 0:
                armed, captions = self._captions(step, rows, sight.index[rows])
                s2 = deduplication_scale(similarity, step.s0, acted["s1"], self.c2).where(armed, 0)
                some = (s2 > 0).nonzero().flatten()
                if len(some):  # no network call for rows whose scale is 0
                    towards = step.denoise(rows[some], [captions[i] for i in some.tolist()]) - uncond[some]
                    dup = torch.zeros_like(change).index_copy(0, some, -broadcast(s2[some], towards) * towards)
                    change += self._record(acted, "dup", dup)
                acted["s2"] = s2
        if "sim" in self.terms and self.c3 > 0:
            gradient = similarity_gradient(self.similarity, step, rows, self.gradient, self.watch)
            pointing = finite_rows(gradient) & gradient.flatten(1).any(1)
            seen = step.alpha_bar[rows] >= MIN_ALPHA_BAR
            gradient = torch.where(broadcast(pointing & seen, gradient), gradient, 0)
            if self.normalize:
                length = norm(gradient)
                gradient = gradient / broadcast(torch.where(length > 0, length, 1), gradient)
            acted["dropped"] = ~pointing & seen
            lost = acted["dropped"].nonzero().flatten()
            if len(lost):
                gradient[lost] = own_direction([step.seeds[row] for row in rows[lost].tolist()], gradient)
            change += self._record(acted, "sim", dissimilarity(gradient, step.alpha_bar[rows], self.c3))
        return change, acted

    def _captions(self, step: Step, rows: Tensor, index: Tensor) -> tuple[Tensor, list[str]]:
        """Finds the flagged rows that G_dup acts on, (R,) bool, and the caption that it steers each away from."""
        if self._common is not None:
            k = min(self.neighbours, len(self.similarity.bank))
            found = self._common(self.similarity.neighbours(self.watch.images(step, rows), k))
            return (found >= 0).to(index.device), [self._common.names[i] if i >= 0 else "" for i in found.tolist()]
        captions = self._given_captions()
        captions = [captions[i] or "" for i in index.tolist()]
        return torch.tensor([caption != "" for caption in captions], device=index.device), captions

    def _given_captions(self) -> Sequence[str | None] | None:
        """The captions of the training images, or None where there are none to ask."""
        if self.captions is not None:
            return self.captions
        return getattr(getattr(self.similarity, "bank", None), "captions", None)

    def _look_for_captions(self) -> None:
        """Reports missing captions before the first step rather than at the first flagged one."""
        captions = self._given_captions()
        if captions is None:
            raise ValueError("guidance.captions: G_dup needs the captions of the training images; give captions=")
        if not any(captions):
            warnings.warn("no training image has a caption: G_dup does nothing", stacklevel=3)

    def _counter(self, count: int) -> CommonCaption:
        if not hasattr(self.similarity, "neighbours"):
            raise ValueError("guidance.neighbours: captions are counted by a similarity that lists neighbours")
        bank = self.similarity.bank
        captions = bank.all_captions if self.captions is None else [(caption,) for caption in self.captions]
        return CommonCaption(captions, bank.multiplicity, count)

    @staticmethod
    def _record(acted: dict[str, Tensor], name: str, term: Tensor) -> Tensor:
        acted[name] = norm(term).to(acted[name])
        return term


def similarity_gradient(
    similarity: Similarity, step: Step, rows: Tensor, gradient: str, watch: Watch | None = None
) -> Tensor:
    """Returns ∇_{x_t} σ_t of some rows, (R, C, H, W).

    Args:
        rows: (R,).
        gradient: one of `GRADIENTS`.
        watch: who looked at these samples by the same similarity, and may have kept their graph.
    """
    alpha_bar = step.alpha_bar[rows]
    if gradient == "fixed_eps":  # x̂0 is then linear in x_t with slope 1/√ᾱ_t
        by_x0 = slope(similarity, step, rows) if watch is None else watch.slope(step, rows)
        return by_x0 / broadcast(alpha_bar.sqrt(), by_x0)
    with torch.inference_mode(False), torch.enable_grad():
        x_t = step.x_t[rows].clone().requires_grad_()
        # diffusers' layerwise casting changes weights in place after each call: an alias keeps what was used
        with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
            eps = step.predict(x_t, rows)
        x0 = replace(step, x_t=x_t, alpha_bar=alpha_bar).predict_x0(eps)
        x0 = step.x0[rows] + (x0 - x0.detach())  # clipped where the scheduler clips: its value, our gradient
        return torch.autograd.grad(similarity(step.decode(x0)).value.sum(), x_t)[0]
