"""The lab's small Stable Diffusion: a real network that memorized what was planted."""

from __future__ import annotations

import torch

from amg.bank import TrainingBank
from amg.lab.pictures import lab_pictures
from amg.lab.weights import weights
from amg.models.stable_diffusion import StableDiffusion


class LabStableDiffusion(StableDiffusion):
    """`StableDiffusion` of the shipped weights, with its training set and default prompts.

    Args:
        device, dtype: as `StableDiffusion`'s.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: str | torch.dtype = torch.float32):
        super().__init__(weights("lab_sd"), device=device, dtype=dtype)
        self.pictures = lab_pictures(32)
        self._causes = self.pictures.causes_by_caption

    def bank(self) -> TrainingBank:
        """Every picture, a duplicated one once per caption."""
        rows = [(i, caption) for i, captions in enumerate(self.pictures.captions) for caption in captions]
        return TrainingBank.from_tensors(self.pictures.images[[i for i, _ in rows]], [caption for _, caption in rows])

    def prompts(self) -> list[str]:
        """The caption of every planted picture, and as many ordinary ones, in turn."""
        found = zip(self.pictures.captions, self.pictures.causes, strict=True)
        planted = [captions[-1] for captions, cause in found if cause]  # the bank knows a picture by its first
        names = [name for name, cause in zip(self.pictures.names, self.pictures.causes, strict=True) if not cause]
        ordinary = names[:: len(names) // len(planted)][: len(planted)]
        return [prompt for pair in zip(planted, ordinary, strict=True) for prompt in pair]

    def is_planted(self, caption: str) -> bool:
        """Whether the picture of that caption is one that was planted."""
        return caption in self._causes

    def cause(self, prompt: str) -> str:
        """Why the prompt makes copies: one of CAUSES, or "ordinary"."""
        return self._causes.get(prompt.strip().lower(), "ordinary")
