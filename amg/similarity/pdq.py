"""Perceptual hashes (PDQ, Facebook 2019): 32 bytes an image, which can be shared where images cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amg.bank.vectors import Identity
from amg.similarity.descriptor import DescriptorSimilarity

BITS = 256


def _library() -> Any:
    try:
        import pdqhash
    except ImportError:
        raise ImportError(
            "similarity=pdq needs the package pdqhash: pip install memorization-free-diffusion[pdq]"
        ) from None
    return pdqhash


def bits(images: Tensor) -> Tensor:
    """Hashes images, (B, 3, H, W) in [−1, 1], to −1 and 1, (B, 256)."""
    library = _library()
    pixels = images.detach().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    hashes = [library.compute(np.ascontiguousarray(one))[0] for one in pixels.cpu().numpy()]
    return torch.from_numpy(np.stack(hashes)).to(images) * 2 - 1


class PDQ(DescriptorSimilarity):
    """σ = 1 − 2 d/256, d the Hamming distance of two hashes: a judge and a filter, without a gradient.

    Args:
        bank: training images; None where `hashes` names a file of their hashes.
        hashes: a file that `save` wrote.
        copy, strict: an image is memorized if σ > copy; the authors match at d <= 31, σ > 0.75.
        index: how the nearest is found, "exact" or "faiss"; see `DescriptorSimilarity`.
    Raises:
        ImportError: without the package `pdqhash`.
        ValueError: for a file that holds no hashes, or neither bank nor file.
    """

    differentiable = False

    def __init__(
        self,
        bank: Any = None,
        hashes: str | Path | None = None,
        copy: float = 0.75,
        strict: float = 0.7,
        index: str = "exact",
    ):
        _library()
        if bank is None and hashes is None:
            raise ValueError("similarity=pdq needs a bank, or hashes=<file that PDQ.save wrote>")
        kept = None if hashes is None else _Hashes(hashes)
        if bank is not None and kept is not None and len(bank) != len(kept):
            raise ValueError(f"similarity.hashes: {hashes} holds {len(kept)} hashes, the bank {len(bank)} images")
        super().__init__(kept or bank, bits, None, copy, strict, False, Identity("pdq", "1", "256 bits"), index)

    def save(self, path: str | Path) -> Path:
        """Writes the hashes of the training images, (N, 32) bytes, as a .npy file; no image can be made of them."""
        vectors = self.bank.vectors(self, torch.device("cpu"), torch.float32)
        path = Path(path).with_suffix(".npy")
        np.save(path, np.packbits(vectors.numpy() > 0, axis=1))
        return path


class _Hashes:
    """A bank of hashes alone."""

    cache, broken, shape = None, {}, (3, 512, 512)
    """Images are brought to the size that the hash is made for."""

    def __init__(self, path: str | Path):
        try:
            packed = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"similarity.hashes: no file {path}; PDQ(bank).save(path) writes one") from None
        except (ValueError, EOFError, OSError):
            packed = np.empty(0)
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] * 8 != BITS or not len(packed):
            raise ValueError(f"similarity.hashes: {path} holds no hashes: PDQ(bank).save(path) writes them")
        self._vectors = torch.from_numpy(np.unpackbits(packed, axis=1)).float() * 2 - 1
        self._vectors /= BITS**0.5

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self, descriptor: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self._vectors.to(device, dtype)

    def stored(self, descriptor: Any) -> None:
        return None
