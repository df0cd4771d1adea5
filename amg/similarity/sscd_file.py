"""SSCD's published TorchScript files: where they are, whether one is the right one, and the vector before its norm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from amg.fetch import fetch_file, mismatch
from amg.tensors import sha256_of

FILE = "sscd_disc_mixup.torchscript.pt"
SIZE, SHA256 = 98_791_638, "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"
"""Of FILE."""
URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/"
"""Address at which the authors publish their files."""
DIMENSIONS = (512, 1024)
"""Of `sscd_disc_mixup` (ResNet-50), and of `sscd_disc_large` (ResNeXt-101 32x4d)."""
SLICE = 8
"""Images embedded at once; under a gradient each slice is recomputed, so that memory does not grow with the batch."""
Step = Callable[[Tensor], Tensor]


def find(path: str | Path = FILE, size: int | None = None, sha256: str | None = None) -> None:
    """Checks the descriptor's file without loading it.

    Args:
        path: the file.
        size, sha256: bytes and digest that it must have, where given.
    Raises:
        FileNotFoundError: where it is not; it says how to fetch the published one.
        ValueError: for a file of another size or digest.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"similarity.path: no descriptor file at {path}: fetch {url(path)} by amg.similarity.sscd_file.fetch, or "
            "put it there yourself, or name another place"
        )
    if wrong := mismatch(path, size, sha256):
        raise ValueError(
            f"similarity.path: {path} {wrong}: fetch it anew by amg.similarity.sscd_file.fetch; a file of your own is "
            f"taken by similarity.path={path} similarity.size=null similarity.sha256=null"
        )


def fetch(path: str | Path = FILE, size: int | None = None, sha256: str | None = None) -> None:
    """Fetches a published file that is missing; one that is there stays, and `find` says if it is another.

    Raises:
        NotFetched, OSError, ValueError: as `amg.fetch.fetch_file`.
    """
    path = Path(path)
    if not path.exists() and path.name.startswith("sscd_"):
        try:
            fetch_file(url(path), path, sha256, size)
        except ValueError as error:  # pooch names the file by another name while it is checked
            raise ValueError(f"{path} from {url(path)}: {error}") from None


def url(path: str | Path, address: str | None = None) -> str:
    """Returns the address of the published file of that name; of FILE if the name is none of the authors'."""
    name = Path(path).name
    return (address or URL).rstrip("/") + "/" + (name if name.startswith("sscd_") else FILE)


class TorchScript:
    """A descriptor in a TorchScript file: (B, 3, H, W) to (B, 512) or (B, 1024) of unit length, differentiable.

    The published files end in an L2 normalisation. Here the vector before it is taken and divided by its norm, which is
    held fixed in the gradient; who wants the norm's part too normalises once more.

    Attributes:
        pre_norm: whether that vector was reached. False where the file normalises and has no children `backbone` and
            `embeddings` that lead there, as after `torch.jit.freeze`: then the norm's part is in the gradient, and
            that of a cosine vanishes at a copy.
        sha256: digest of the file.

    Raises:
        FileNotFoundError: where there is no such file; it says how to fetch the published one.
        ValueError: for a file of another size, digest or output.
    """

    def __init__(
        self, path: str | Path, size: int | None = None, sha256: str | None = None, device: str | torch.device = "cpu"
    ):
        path = Path(path)
        find(path, size, sha256)
        self.sha256 = sha256.lower() if sha256 else sha256_of(path)
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError:
            raise ValueError(
                f"similarity.path: {path} is no readable TorchScript file (truncated?): fetch {url(path)} anew"
            ) from None
        for weight in self.module.parameters():
            weight.requires_grad_(False)
        self.device = torch.device(device)
        with torch.no_grad():
            noise = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(self.device)
            whole = self.module(noise)
            if whole.ndim != 2 or whole.shape[1] not in DIMENSIONS:
                shape = tuple(whole.shape[1:])
                raise ValueError(
                    f"similarity.path: {path} makes descriptors of shape {shape}, SSCD's have 512 or 1024 numbers"
                )
            self._steps = _before_norm(self.module, noise, whole) or [self.module]
            length = _through(self._steps, noise).norm(dim=1)
        self.pre_norm = not torch.allclose(length, torch.ones_like(length), atol=1e-3)

    def __call__(self, images: Tensor) -> Tensor:
        parts = images.to(self.device, torch.float32).split(SLICE)
        if torch.is_grad_enabled() and images.requires_grad:
            with set_checkpoint_early_stop(False):  # its exception would not come through TorchScript
                parts = [checkpoint(self._embed, part, use_reentrant=False) for part in parts]
        else:
            parts = [self._embed(part) for part in parts]
        return torch.cat(parts).to(images)

    def _embed(self, images: Tensor) -> Tensor:
        embedding = _through(self._steps, images)
        return embedding / embedding.norm(dim=1, keepdim=True).clamp(min=1e-12).detach()


def _before_norm(module: torch.jit.ScriptModule, images: Tensor, whole: Tensor) -> list[Step] | None:
    """Finds the modules that lead to the vector whose normalisation is the file's output; None if there are none.

    The authors' files are embeddings(backbone(x)), where `embeddings` is the normalisation alone, or pooling, linear
    and normalisation in a row. Believed only where the numbers agree.
    """
    children = dict(module.named_children())
    if not {"backbone", "embeddings"} <= children.keys():
        return None
    steps = [children["backbone"], *list(children["embeddings"].children())[:-1]]
    try:
        agree = torch.allclose(F.normalize(_through(steps, images)), whole, rtol=1e-5, atol=1e-6)
    except Exception:  # the code is the file's own and may raise anything
        return None
    return steps if agree else None


def _through(steps: list[Step], images: Tensor) -> Tensor:
    for step in steps:
        images = step(images)
    return images
