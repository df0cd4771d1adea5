"""SSCD, the copy-detection descriptor of the paper (Pizzi et al., 2022), and the ways it is fed in the literature."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
from amg.similarity.descriptor import DescriptorSimilarity
from amg.similarity.sscd_file import FILE, TorchScript
from amg.similarity.sscd_file import fetch as fetch
from amg.similarity.sscd_file import find as find  # experiments.build looks for it beside the class


def official(images: Tensor) -> Tensor:
    """The authors': skewed to 320 × 320, ImageNet statistics. [−1, 1] in, (B, 3, 320, 320) out, as all presets."""
    return _imagenet(_resize(images, (320, 320)))


def nemo(images: Tensor) -> Tensor:
    """Preprocessing of NeMo (Hintersdorf et al., 2024) and of Han et al.: as `official`."""
    return official(images)


def dcr(images: Tensor) -> Tensor:
    """Preprocessing of Somepalli et al. (2023), Wen et al.: smaller side to 256, centre 224, mean, deviation 0.5."""
    height, width = images.shape[2:]
    small = min(height, width)
    images = _resize(images, (round(256 * height / small), round(256 * width / small)))
    top, left = (images.shape[2] - 224) // 2, (images.shape[3] - 224) // 2
    return images[:, :, top : top + 224, left : left + 224]  # (x/2 + ½ − ½)/½ is x: [−1, 1] already


def amg_release(images: Tensor) -> Tensor:
    """Preprocessing of the released AMG code: 224 × 224, the generated image left in [−1, 1]."""
    return _resize(images, (224, 224))


def amg_release_bank(images: Tensor) -> Tensor:
    """Its counterpart for training images, which the released code leaves in [0, 1]."""
    return _resize(images, (224, 224)) / 2 + 0.5


PRESETS: dict[str, Callable[[Tensor], Tensor]] = {
    "official": official,
    "dcr": dcr,
    "nemo": nemo,
    "amg_release": amg_release,
}


class SSCD(DescriptorSimilarity):
    """σ = E(x)ᵀ E(n), E the SSCD descriptor (Eq. 9; paper: `sscd_disc_mixup`).

    Args:
        bank: training images.
        path: the published TorchScript file, `sscd_disc_mixup` or another of the authors'.
        preset: how images are fed to it, a name in PRESETS. Numbers of different presets do not compare.
        copy, strict: an image is memorized if σ > copy (paper: 0.5; strict: 0.4; the descriptor's authors name 0.75
            for 90 % precision).
        size, sha256: bytes and digest of the file, checked where given.
        device: where the descriptor runs; images are moved there and σ back.
        norm_gradient: as `DescriptorSimilarity`'s. The published files normalise inside; the vector before is taken
            from their own children. Where a file has none that lead there (`pre_norm` is False), its norm stays in
            the gradient, which then vanishes at a copy.
        index: how the nearest is found, "auto", "exact" or "faiss"; see `DescriptorSimilarity`.
    """

    def __init__(
        self,
        bank: TrainingBank,
        path: str | Path = FILE,
        preset: str = "official",
        copy: float = 0.5,
        strict: float = 0.4,
        size: int | None = None,
        sha256: str | None = None,
        device: str | torch.device = "cpu",
        norm_gradient: bool = False,
        index: str = "auto",
    ):
        if preset not in PRESETS:
            raise ValueError(f"similarity.preset: unknown {preset!r}; choose among {', '.join(PRESETS)}")
        self.preset, self.path = preset, Path(os.path.expanduser(path))
        embed = TorchScript(self.path, size, sha256, device)
        self.pre_norm = embed.pre_norm
        name = self.path.name.split(".")[0]
        own = Identity(name, embed.sha256, preset)
        super().__init__(bank, embed, PRESETS[preset], copy, strict, norm_gradient, own, index)
        if preset == "amg_release":  # only the released code feeds training images in another range
            identity = Identity(name, embed.sha256, amg_release_bank.__name__)
            self.training = DescriptorSimilarity(bank, embed, amg_release_bank, identity=identity)

    @property
    def described(self) -> str:
        """Names the file and the preprocessing, without which a number of SSCD means little."""
        note = "" if self.pre_norm or self.norm_gradient else ", with its own norm in the gradient"
        return f"{self.path.name}, preprocessing {self.preset}{note}"

    def __repr__(self) -> str:
        return f"SSCD({self.path.name}, preset={self.preset})"


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, averaging where it shrinks, as Pillow does."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def _imagenet(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).to(images)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1).to(images)
    return (images / 2 + 0.5 - mean) / deviation
