"""A world known in closed form: emoji, some of them planted to be memorized, and the exact diffusion of their law."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.worlds.emoji import CAUSES, Pictures, emoji
from amg.worlds.mixture import Mixture


class ClosedForm:
    """The exact denoiser of p(x), p(x | class) and p(x | caption), with the truth about every picture.

    The law of the pictures is one joint table p(component) p(caption | component): a point mass on each planted picture
    and one low-rank Gaussian per Unicode subgroup of the ordinary pictures. Everything follows from it: no training, no
    approximation. A copy is a sample whose responsible component is a point.

    - The caption of a planted picture asks for it with probability `caption_weight`, for its subgroup otherwise. That
      is low enough for plain conditional sampling to be mostly novel and high enough for CFG to make copies.
    - The name of a subgroup or group asks for its Gaussians, and rarely for a planted picture in it; the name of an
      ordinary picture asks for its subgroup. A class label (0 …) is the index of a group in `classes`.

    Args:
        size: side of the pictures, 16, 32 or 64.
        rank: principal directions of a Gaussian, at most.
        rest: variance in all other directions, > 0.
        planted_weight: share of the points in p(x), in (0, 1).
        caption_weight: share of the points under the caption of a planted picture, in (0, 1).
        device, dtype: of the samples. The densities are computed in float64 where the device has it.
    """

    def __init__(
        self,
        size: int = 32,
        rank: int = 24,
        rest: float = 0.0025,
        planted_weight: float = 0.03,
        caption_weight: float = 0.2,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        from diffusers import DDIMScheduler  # slow to import, and a mistake in the keys should be told before

        for name, value in (("planted_weight", planted_weight), ("caption_weight", caption_weight)):
            if not 0 < value < 1:
                raise ValueError(f"model.{name} must lie in (0, 1), got {value}")
        if rest <= 0 or rank < 1:
            raise ValueError(f"model.rest must be > 0 and model.rank >= 1, got {rest} and {rank}")
        self.device, self.dtype, self.shape = torch.device(device), dtype, (3, size, size)
        self.side = size
        self.pictures = emoji(size)
        self.scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
        )
        self.classes = sorted(set(self.pictures.groups))
        self._build(rank, rest, planted_weight, caption_weight)

    def _build(self, rank: int, rest: float, planted_weight: float, caption_weight: float) -> None:
        pictures = self.pictures
        self.planted = [i for i, cause in enumerate(pictures.causes) if cause]
        ordinary = [i for i, cause in enumerate(pictures.causes) if not cause]
        self.subgroups = sorted({pictures.subgroups[i] for i in ordinary})
        members = [[i for i in ordinary if pictures.subgroups[i] == name] for name in self.subgroups]
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        pixels = pictures.images.flatten(1).double()
        fits = [_low_rank(pixels[some], rank) for some in members]
        self.mixture = Mixture(
            pixels[self.planted].to(self.device, precise),
            *(torch.stack(part).to(self.device, precise) for part in zip(*fits, strict=True)),
            rest=rest,
        )
        points = torch.full((len(self.planted),), planted_weight / len(self.planted), dtype=torch.float64)
        sizes = torch.tensor([len(some) for some in members], dtype=torch.float64)
        self.weights = torch.cat([points, (1 - planted_weight) * sizes / sizes.sum()]).to(self.device, precise)
        self.component_subgroup = [pictures.subgroups[i] for i in self.planted] + self.subgroups
        group_of = dict(zip(pictures.subgroups, pictures.groups, strict=True))
        self.component_group = [group_of[name] for name in self.component_subgroup]
        self.captions = self._captions(caption_weight)

    def _captions(self, caption_weight: float) -> dict[str, Tensor]:
        """p(caption | component) as columns of the joint table, (K,) each; the columns of a component sum to 1."""
        pictures, points = self.pictures, len(self.planted)
        table: dict[str, Tensor] = {}

        def column(caption: str) -> Tensor:
            return table.setdefault(caption, torch.zeros_like(self.weights))

        for j, i in enumerate(self.planted):  # nine tenths of a planted picture's captions are its own
            for caption in pictures.captions[i]:
                column(caption)[j] = 0.9 / len(pictures.captions[i])
        for values in list(table.values()):  # its subgroup shares the caption, so that the points weigh caption_weight
            mass = (self.weights * values).sum()
            owners = values[:points].nonzero().flatten().tolist()
            for j in owners:
                g = points + self.subgroups.index(self.component_subgroup[j])
                values[g] += mass * (1 - caption_weight) / caption_weight / len(owners) / self.weights[g]
        left = 1 - sum(table.values())
        if left.min() < 0.05:
            raise ValueError("model.caption_weight is too small for model.planted_weight: raise it or lower the other")
        for k, (subgroup, group) in enumerate(zip(self.component_subgroup, self.component_group, strict=True)):
            column(subgroup)[k] += 0.8 * left[k]
            column(group.lower())[k] += 0.2 * left[k]
        return table

    # -- what sampling asks ------------------------------------------------------------------------------------------

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, None]:
        """E[x_0 | x_t, condition], (B, C, H, W): the scheduler's prediction type is `sample`."""
        alpha_bar = self.scheduler.alphas_cumprod.to(self.weights)[timestep].expand(len(x_t))
        return self.denoise(x_t, alpha_bar, condition), None

    def denoise(self, x_t: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t, condition] at any ᾱ_t in [0, 1], (B,)."""
        condition = self.weights.log() if condition is None else condition
        flat = x_t.flatten(1).to(self.weights)
        return self.mixture.posterior_mean(flat, alpha_bar.to(self.weights), condition).view(x_t.shape).to(x_t.dtype)

    def encode(self, conditions: Sequence[str | int | None]) -> Tensor:
        """log p(component | condition), (B, K), of captions, class labels or None for no condition.

        Raises:
            ValueError: for a caption or label that the world does not know; offers near ones.
        """
        return torch.stack([self.component_weights(condition).log() for condition in conditions])

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels are pictures, clamped to [−1, 1] with a straight-through gradient: what is seen is what is judged."""
        return x0 + (x0.clamp(-1, 1) - x0).detach()

    # -- what is known of the world ----------------------------------------------------------------------------------

    def component_weights(self, condition: str | int | None = None) -> Tensor:
        """p(component | condition), (K,)."""
        if condition is None:
            return self.weights
        if isinstance(condition, str):
            weights = self.weights * self.captions[self._known(condition)]
        elif 0 <= condition < len(self.classes):
            inside = [group == self.classes[condition] for group in self.component_group]
            weights = self.weights * torch.tensor(inside, device=self.device)
        else:
            raise ValueError(
                f"label {condition} is out of range: 0 … {len(self.classes) - 1} ({', '.join(self.classes)})"
            )
        return weights / weights.sum()

    def true_copy_rate(self, condition: str | int | None = None) -> float:
        """The exact probability that a sample of p(x | condition) is a copy of a planted picture."""
        return self.component_weights(condition)[: len(self.planted)].sum().item()

    def responsible(self, images: Tensor, noise: float = 0.2) -> Tensor:
        """The component that most probably made each picture, (B,); below `len(self.planted)` it is a planted point.

        Args:
            images: (B, 3, H, W).
            noise: standard deviation of the noise through which the picture is judged: a copy with a little grain on it
                is still a copy, although no point mass would ever give it.
        """
        flat = images.flatten(1).to(self.weights)
        alpha_bar = torch.full((len(flat),), 1 / (1 + noise**2)).to(self.weights)
        densities = self.mixture.log_density(alpha_bar.sqrt()[:, None] * flat, alpha_bar)
        return (densities + self.weights.log()).argmax(1)

    def is_copy(self, component: Tensor) -> Tensor:
        return component < len(self.planted)

    def component_name(self, component: int) -> str:
        """The planted picture's or the subgroup's name."""
        if component < len(self.planted):
            return self.pictures.names[self.planted[component]]
        return self.component_subgroup[component]

    def asked_for(self, condition: str | int | None) -> Tensor:
        """Which components a condition asks for, (K,) bool: those that it gives any weight."""
        return self.component_weights(condition) > 0

    def draw(self, n: int, condition: str | int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Exact samples (n, C, H, W) of p(x | condition), and their components (n,)."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.component_weights(condition).cpu(), n, replacement=True, generator=generator)
        return self.mixture.draw(component, generator).view(n, *self.shape).to(self.dtype), component

    def bank(self) -> TrainingBank:
        """The training set: every picture, a duplicated one once per caption."""
        pictures = self.pictures
        rows = [(i, caption) for i, captions in enumerate(pictures.captions) for caption in captions]
        images = pictures.images[[i for i, _ in rows]].to(self.device)
        return TrainingBank.from_tensors(images, [caption for _, caption in rows])

    def prompts(self) -> list[str]:
        """The default prompts: the caption of every planted picture, and as many ordinary ones, in turn."""
        planted = [self.pictures.captions[i][-1] for i in self.planted]  # the bank knows a picture by its first
        ordinary = [self.subgroups[k % len(self.subgroups)] for k in range(len(planted))]
        return [prompt for pair in zip(planted, ordinary, strict=True) for prompt in pair]

    def cause(self, prompt: str) -> str:
        """Why the prompt makes copies: one of CAUSES, or "ordinary"."""
        prompt = self._known(prompt)
        causes = {self.pictures.causes[i] for i in self.planted if prompt in self.pictures.captions[i]}
        return min(causes, key=CAUSES.index) if causes else "ordinary"

    def _known(self, caption: str) -> str:
        caption = caption.strip().lower()
        if caption in self.captions:
            return caption
        if caption in self.pictures.names:
            return self.pictures.subgroups[self.pictures.names.index(caption)]
        near = difflib.get_close_matches(caption, [*self.captions, *self.pictures.names], n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else f", e.g. {', '.join(self.subgroups[:4])}"
        raise ValueError(f"the closed-form world has no picture, subgroup or group named {caption!r}{hint}")


def _low_rank(pixels: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), principal directions (rank, D) and variances (rank,) of some pictures (n, D); padded with zeros."""
    mean = pixels.mean(0)
    _, singular, rows = torch.linalg.svd(pixels - mean, full_matrices=False)
    kept = min(rank, len(pixels) - 1)
    directions, variances = pixels.new_zeros(rank, pixels.shape[1]), pixels.new_zeros(rank)
    directions[:kept], variances[:kept] = rows[:kept], singular[:kept] ** 2 / len(pixels)
    return mean, directions, variances


__all__ = ["ClosedForm", "Pictures"]
