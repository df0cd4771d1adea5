"""The lab's pixel network: unconditional and by Unicode group, with planted pictures that it memorized."""

from __future__ import annotations

import torch

from amg.bank import TrainingBank
from amg.lab.pictures import lab_pictures
from amg.lab.weights import weights
from amg.models.ddpm import DDPM


class LabDDPM(DDPM):
    """`DDPM` of the shipped weights, with its training set; its classes are the Unicode groups.

    Args:
        device, dtype: as `DDPM`'s.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        super().__init__(weights("lab_ddpm"), device=device, dtype=dtype)
        self.pictures = lab_pictures(self.network.config.sample_size)
        self.classes = sorted(set(self.pictures.groups))
        self._planted = {name for name, cause in zip(self.pictures.names, self.pictures.causes, strict=True) if cause}

    def bank(self) -> TrainingBank:
        """Every picture once, as the network saw them."""
        return TrainingBank.from_tensors(self.pictures.images, list(self.pictures.names))

    def is_planted(self, caption: str) -> bool:
        """Whether the picture of that name is one that was planted."""
        return caption in self._planted
