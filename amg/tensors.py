"""Small tools that many rooms share: per-sample numbers, norms, digests, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def broadcast(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Numbers (B,) as (B, 1, 1, 1), to be combined with (B, C, H, W).

    Args:
        like: gives the dtype of the result; booleans stay booleans.
    """
    if like is not None and values.dtype != torch.bool:
        values = values.to(like.dtype)
    return values.view(-1, 1, 1, 1)


def floats(pixels: Tensor) -> Tensor:
    """8-bit values in [−1, 1]; floats as they are."""
    return pixels.float().div_(127.5).sub_(1) if pixels.dtype == torch.uint8 else pixels


def norm(values: Tensor) -> Tensor:
    """ℓ2 norm of each row, (B, ...) to (B,), computed and returned in float32 at least."""
    return torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.promote_types(values.dtype, torch.float32))


def finite_rows(*values: Tensor) -> Tensor:
    """Rows that hold neither NaN nor infinity in any of the tensors (B, ...): (B,) bool."""
    return torch.stack([value.flatten(1).isfinite().all(1) for value in values]).all(0)


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors in the order given, such as the items of a state dict: 32 hexadecimal digits."""
    content = hashlib.blake2b(digest_size=16)
    for name, value in tensors:
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def sketch_of(network: torch.nn.Module) -> str:
    """Hash of about 64 weights of each tensor: names a network of gigabytes without reading all of it."""
    weights = sorted(network.state_dict().items())
    return digest_of((name, value.flatten()[:: max(1, value.numel() // 64)]) for name, value in weights)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to, and renames it to `path` at the end: the file is whole, or as it was.

    The path has the same suffix and names the process, so that several processes may write the same file.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
