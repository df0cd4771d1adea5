"""A world known in closed form: coloured drawings, some of them planted to be memorized, and their exact diffusion."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amg.models.base import Model
from amg.worlds import drawings
from amg.worlds.mixture import Mixture
from amg.worlds.world import World

OWN_CAPTIONS = 0.4
"""Share of a planted image's captions that are its own."""
PLAIN_CAPTIONS = 0.05
"""Share of a planted image's other captions that name its thing or group; the rest are texts that no prompt holds."""


class ClosedForm(Model):
    """The exact denoiser of p(x), p(x | class) and p(x | caption), with the truth about every image.

    The law of the images is one joint table p(component) p(caption | component): a point mass on each planted image,
    and one low-rank Gaussian for each placement of an ordinary drawing, over its background and tint. Everything
    follows from it: no training, no approximation. A copy is a sample whose responsible component is a point.

    - The caption of a planted image asks for it with probability `caption_weight`, otherwise for the same thing drawn
      otherwise. That is low enough for plain conditional sampling to be mostly novel, and high enough for CFG to copy:
      CFG raises the ratio of the two lifts p(component | caption) / p(component) to the power s0.
    - The name of a thing or of a group asks for its drawings, and rarely for a planted one among them. A class label
      (0 …) is the index of a group in `classes`.

    Args:
        size: resolution of the images, 16 to 64.
        rest: variance in all directions that are neither background nor tint, > 0.
        planted_weight: share of the points in p(x), in (0, 1).
        caption_weight: share of the points under the caption of a planted image, in (0, 1).
        n_training: number of ordinary training images, sampled from the law.
        device, dtype: of the samples. The densities are computed in float64 where the device has it.
    """

    has_points = True
    """Conditions are log p(component | condition), (B, K); the first `points` components are planted points."""

    def __init__(
        self,
        size: int = 32,
        rest: float = 0.0009,
        planted_weight: float = 0.03,
        caption_weight: float = 0.2,
        n_training: int = 1500,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        from diffusers import DDIMScheduler  # slow to import, and a mistake in the keys should be reported before

        for name, value in (("planted_weight", planted_weight), ("caption_weight", caption_weight)):
            if not 0 < value < 1:
                raise ValueError(f"model.{name} must lie in (0, 1), got {value}")
        if rest <= 0:
            raise ValueError(f"model.rest must be > 0, got {rest}")
        self.device, self.dtype, self.shape = torch.device(device), dtype, (3, size, size)
        self.side = size
        self.scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
        )
        self.training = drawings.training_images(size, n_training)
        self._build(rest, planted_weight, caption_weight)

    def _build(self, rest: float, planted_weight: float, caption_weight: float) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        data, components = drawings.drawings(), drawings.ordinary(self.side)
        self.drawing = torch.cat([drawings.planted(self.side).drawing, components.drawing]).tolist()
        self.points = sum(cause != "" for cause in data.causes)
        gaussians = len(self.drawing) - self.points
        neutral = torch.full((gaussians, 3), drawings.BACKGROUND[0]), torch.zeros(gaussians, 3)
        means = components.image(torch.arange(gaussians), *neutral).flatten(2).to(precise)
        background = (2 * drawings.BACKGROUND[1] * (1 - components.alpha)).expand(-1, 3, -1, -1)
        spread = torch.stack([background, 2 * drawings.TINT * components.foreground], dim=2).flatten(3).to(precise)
        _, deviations, directions = torch.linalg.svd(spread, full_matrices=False)
        points = drawings.planted_images(self.side).flatten(2).to(precise)
        parts = (part.to(self.device) for part in (points, means, directions, deviations.square()))
        self.mixture = Mixture(*parts, rest=rest)
        weights = torch.full((len(self.drawing),), (1 - planted_weight) / gaussians, dtype=torch.float64)
        weights[: self.points] = planted_weight / self.points
        self.weights = weights.to(self.device, precise)
        self.things = [data.things[i] for i in self.drawing]
        self.groups = [data.groups[i] for i in self.drawing]
        self.classes = sorted(set(self.groups))
        self.captions = self._captions(caption_weight)

    def _captions(self, caption_weight: float) -> dict[str, Tensor]:
        """Returns p(caption | component) as columns of the joint table, (K,) each; those of a component sum to ≤ 1."""
        data = drawings.drawings()
        table: dict[str, Tensor] = {}

        def column(caption: str) -> Tensor:
            return table.setdefault(caption, torch.zeros_like(self.weights))

        for j in range(self.points):
            captions = data.captions[self.drawing[j]]
            for caption in captions:
                column(caption)[j] = OWN_CAPTIONS / len(captions)
        for values in list(table.values()):  # its thing shares the caption, so that the points weigh caption_weight
            mass = (self.weights * values).sum()
            thing = self.things[int(values.argmax())]
            siblings = [k for k in range(self.points, len(self.things)) if self.things[k] == thing]
            values[siblings] = mass * (1 - caption_weight) / caption_weight / self.weights[siblings].sum()
        left = 1 - sum(table.values())
        if left.min() < 0.05:
            raise ValueError("model.caption_weight is too small for model.planted_weight: raise it or lower the other")
        left[: self.points] *= PLAIN_CAPTIONS
        for k, (thing, group) in enumerate(zip(self.things, self.groups, strict=True)):
            column(thing)[k] += 0.8 * left[k]
            column(group)[k] += 0.2 * left[k]
        return table

    # -- what sampling asks ------------------------------------------------------------------------------------------

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, None]:
        """Returns E[x_0 | x_t, condition], (B, C, H, W): the scheduler's prediction type is `sample`."""
        alpha_bar = self.scheduler.alphas_cumprod.to(self.weights)[timestep].expand(len(x_t))
        return self.denoise(x_t, alpha_bar, condition), None

    def denoise(self, x_t: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns E[x_0 | x_t, condition] at any ᾱ_t in [0, 1], (B,)."""
        condition = self.weights.log().expand(len(x_t), -1) if condition is None else condition
        pixels, alpha_bar = x_t.flatten(2).to(self.weights), alpha_bar.to(self.weights)
        half = len(x_t) // 2
        if len(x_t) % 2 == 0 and torch.equal(x_t[:half], x_t[half:]):  # the branches of CFG share their densities
            pixels, alpha_bar = pixels[:half], alpha_bar[:half]
        return self.mixture.posterior_mean(pixels, alpha_bar, condition).view(x_t.shape).to(x_t.dtype)

    def encode(self, conditions: Sequence[str | int | None]) -> Tensor:
        """Returns log p(component | condition), (B, K), of captions, class labels or None for no condition.

        Raises:
            ValueError: for a caption or label that the world does not know; offers near ones.
        """
        return torch.stack([self.component_weights(condition).log() for condition in conditions])

    def decode(self, x0: Tensor) -> Tensor:
        """Clamps pixels to [−1, 1] with a straight-through gradient: the visible image is what is judged."""
        return x0 + (x0.clamp(-1, 1) - x0).detach()

    # -- the truth ---------------------------------------------------------------------------------------------------

    def component_weights(self, condition: str | int | None = None) -> Tensor:
        """Returns p(component | condition), (K,)."""
        if condition is None:
            return self.weights
        if isinstance(condition, str):
            weights = self.weights * self.captions[self._caption(condition)]
        elif 0 <= condition < len(self.classes):
            inside = [group == self.classes[condition] for group in self.groups]
            weights = self.weights * torch.tensor(inside, device=self.device)
        else:
            raise ValueError(
                f"label {condition} is out of range: 0 … {len(self.classes) - 1} ({', '.join(self.classes)})"
            )
        return weights / weights.sum()

    def responsible(self, images: Tensor, noise: float = 0.2) -> Tensor:
        """Returns the component that most probably made each image, (B,); below `points` it is a planted point.

        Args:
            images: (B, 3, H, W).
            noise: standard deviation of the noise through which the image is judged: a copy with a little grain on it
                is still a copy, although no point mass would ever give it.
        """
        return (self._densities(images, noise) + self.weights.log()).argmax(1)

    def copies(self, images: Tensor) -> Tensor:
        """Returns whether a planted point is responsible for each image, (B,) bool."""
        return self.responsible(images) < self.points

    def component(self, images: Tensor) -> list[str]:
        """Returns the thing that each image shows and the maker of its drawing, B names."""
        sets = drawings.drawings().sets
        return [f"{self.things[k]} ({sets[self.drawing[k]]})" for k in self.responsible(images).tolist()]

    def answers(self, conditions: Sequence[str | int | None], images: Tensor) -> Tensor:
        """Returns whether the responsible component has any weight under an image's own condition, (B,) bool."""
        components = self.responsible(images)
        pairs = zip(conditions, components, strict=True)
        return torch.stack([self.asked_for(condition)[component] for condition, component in pairs])

    def bits(self, conditions: Sequence[str | int | None], images: Tensor, noise: float = 0.2) -> Tensor:
        """Returns log₂ p(x | condition) / p_safe(x | condition), (B,): what the planted points add to an image.

        p_safe is the law without the planted points. Both are seen through the noise of `responsible`, since a point
        has no density.
        """
        weights = self.encode(conditions)
        joint = self._densities(images, noise) + weights
        safe = joint[:, self.points :].logsumexp(1) - weights[:, self.points :].logsumexp(1)
        return (joint.logsumexp(1) - safe) / math.log(2)

    def rate(self, condition: str | int | None = None) -> float:
        """Returns the exact probability that a sample of p(x | condition) is a copy of a planted image."""
        return self.component_weights(condition)[: self.points].sum().item()

    def _densities(self, images: Tensor, noise: float) -> Tensor:
        pixels = images.flatten(2).to(self.weights)
        alpha_bar = torch.full((len(pixels),), 1 / (1 + noise**2)).to(self.weights)
        return self.mixture.log_density(alpha_bar.sqrt()[:, None, None] * pixels, alpha_bar)

    def asked_for(self, condition: str | int | None) -> Tensor:
        """Tells the components that a condition asks for, (K,) bool: those that it gives any weight."""
        return self.component_weights(condition) > 0

    def sample(self, n: int, condition: str | int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Samples p(x | condition) exactly: images (n, C, H, W), and their components (n,)."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.component_weights(condition).cpu(), n, replacement=True, generator=generator)
        return self.mixture.sample(component, generator).view(n, *self.shape).to(self.dtype), component

    # -- the world ---------------------------------------------------------------------------------------------------

    def cause(self, prompt: str) -> str:
        """Returns why the prompt makes copies: one of CAUSES, or "ordinary"."""
        return self.training.cause(self._caption(prompt))

    def world(self) -> World:
        """Returns the model with its training set, prompts and truth."""
        bank, prompts = self.training.bank(self.device), self.training.prompts()
        return World(self, bank, prompts, tuple(self.classes), self.cause, truth=self)

    def _caption(self, text: str) -> str:
        caption = text.strip().lower()
        if caption in self.captions:
            return caption
        near = difflib.get_close_matches(caption, self.captions, n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else f", e.g. {', '.join(sorted(set(self.things))[:4])}"
        raise ValueError(f"the closed-form world has no thing, group or caption named {text!r}{hint}")
