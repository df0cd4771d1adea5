"""SSCD, the copy-detection descriptor of the paper (Pizzi et al., 2022), and the ways it is fed in the literature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
from amg.similarity.descriptor import DescriptorSimilarity

DIMENSIONS = (512, 1024)
"""Of `sscd_disc_mixup` (ResNet-50), and of `sscd_disc_large` (ResNeXt-101)."""
FILE = "sscd_disc_mixup.torchscript.pt"
URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/"
"""Where the authors publish their files."""
SLICE = 8
"""Pictures embedded at once; under a gradient each slice is recomputed, so that memory does not grow with the batch."""


def official(images: Tensor) -> Tensor:
    """The authors': skewed to 320 × 320, ImageNet statistics. [−1, 1] in, (B, 3, 320, 320) out, as all presets."""
    return _imagenet(_resize(images, (320, 320)))


def nemo(images: Tensor) -> Tensor:
    """That of NeMo (Hintersdorf et al., 2024) and of Han et al.: as `official`."""
    return official(images)


def dcr(images: Tensor) -> Tensor:
    """That of Somepalli et al. (2023), Wen et al. and others: smaller side to 256, centre 224, mean, deviation 0.5."""
    height, width = images.shape[2:]
    small = min(height, width)
    images = _resize(images, (round(256 * height / small), round(256 * width / small)))
    top, left = (images.shape[2] - 224) // 2, (images.shape[3] - 224) // 2
    return images[:, :, top : top + 224, left : left + 224]  # (x/2 + ½ − ½)/½ is x: [−1, 1] already


def amg_release(images: Tensor) -> Tensor:
    """That of the released AMG code: 224 × 224, the generated picture left in [−1, 1]."""
    return _resize(images, (224, 224))


def amg_release_bank(images: Tensor) -> Tensor:
    """Its counterpart for training pictures, which the released code leaves in [0, 1]."""
    return _resize(images, (224, 224)) / 2 + 0.5


PRESETS: dict[str, Callable[[Tensor], Tensor]] = {
    "official": official,
    "dcr": dcr,
    "nemo": nemo,
    "amg_release": amg_release,
}


def find(path: str | Path = FILE) -> None:
    """Looks for the descriptor's file without loading it.

    Raises:
        FileNotFoundError: where it is not; it says where the published one is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"similarity.path: no descriptor file at {path}: fetch {_url(path)} and put it there, or name another place"
        )


class SSCD(DescriptorSimilarity):
    """σ = E(x)ᵀ E(n), E the SSCD descriptor (Eq. 9; paper: `sscd_disc_mixup`).

    Args:
        bank: training pictures.
        path: the published TorchScript file, `sscd_disc_mixup` or another of the authors'.
        preset: how pictures are fed to it, a name in PRESETS. Numbers of different presets do not compare.
        copy, strict: a picture is memorized if σ > copy (paper: 0.5; strict: 0.4; the descriptor's authors name 0.75
            for 90 % precision).
        size, sha256: bytes and digest of the file, checked where given.
        device: where the descriptor runs; pictures are moved there and σ back.
        norm_gradient: as `DescriptorSimilarity`'s.
        index: how the nearest is found, "exact" or "faiss"; see `DescriptorSimilarity`.
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
        index: str = "exact",
    ):
        if preset not in PRESETS:
            raise ValueError(f"similarity.preset: unknown {preset!r}; choose among {', '.join(PRESETS)}")
        self.preset, self.path = preset, Path(path)
        embed = TorchScript(path, size, sha256, device)
        name = self.path.name.split(".")[0]
        own = Identity(name, embed.sha256, preset)
        super().__init__(bank, embed, PRESETS[preset], copy, strict, norm_gradient, own, index)
        if preset == "amg_release":  # only the released code feeds training pictures in another range
            identity = Identity(name, embed.sha256, amg_release_bank.__name__)
            self.training = DescriptorSimilarity(bank, embed, amg_release_bank, identity=identity)

    @property
    def described(self) -> str:
        """Which file, fed how: without it a number of SSCD means little."""
        return f"{self.path.name}, preprocessing {self.preset}"

    def __repr__(self) -> str:
        return f"SSCD({self.path.name}, preset={self.preset})"


class TorchScript:
    """A descriptor in a TorchScript file: (B, 3, H, W) to (B, 512) or (B, 1024), differentiable.

    Raises:
        FileNotFoundError: where there is no such file; it says where the published one is.
        ValueError: for a file of another size, digest or output.
    """

    def __init__(
        self, path: str | Path, size: int | None = None, sha256: str | None = None, device: str | torch.device = "cpu"
    ):
        path = Path(path)
        find(path)
        self.sha256 = _check(path, size, sha256)
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError:
            raise ValueError(f"{path} is no readable TorchScript file (truncated?): fetch {_url(path)} anew") from None
        for weight in self.module.parameters():
            weight.requires_grad_(False)
        self.device = torch.device(device)
        with torch.no_grad():
            shape = tuple(self.module(torch.zeros(1, 3, 224, 224, device=device)).shape)
        if len(shape) != 2 or shape[1] not in DIMENSIONS:
            raise ValueError(f"{path} makes descriptors of shape {shape[1:]}, SSCD's have 512 or 1024 numbers")

    def __call__(self, images: Tensor) -> Tensor:
        parts = images.to(self.device, torch.float32).split(SLICE)
        if torch.is_grad_enabled() and images.requires_grad:
            with set_checkpoint_early_stop(False):  # its exception would not come through TorchScript
                parts = [checkpoint(self.module, part, use_reentrant=False) for part in parts]
        else:
            parts = [self.module(part) for part in parts]
        return torch.cat(parts).to(images)


def _url(path: Path) -> str:
    return URL + (path.name if path.name.startswith("sscd_") else FILE)


def _check(path: Path, size: int | None, sha256: str | None) -> str:
    """The file's SHA-256."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise ValueError(f"{path} has {found} bytes, expected {size}: fetch {_url(path)} anew")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {digest}, expected {sha256}: fetch {_url(path)} anew")
    return digest


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, averaging where it shrinks, as Pillow does."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def _imagenet(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).to(images)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1).to(images)
    return (images / 2 + 0.5 - mean) / deviation
