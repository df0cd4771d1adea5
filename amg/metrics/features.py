"""Features of a set of pictures, computed once and kept in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amg.metrics.extractors import Extractor

BATCH = 32


def features_of(pictures: Tensor, extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    """Features of pictures held in memory.

    Args:
        pictures: (N, 3, H, W) in [−1, 1].
        extractor: see `amg.metrics.extractors`.
        cache_dir: a folder that may serve many runs; None keeps nothing.
    Returns:
        (N, D) float32.
    """
    content = hashlib.blake2b(repr(tuple(pictures.shape)).encode(), digest_size=16)
    content.update(pictures.detach().float().cpu().contiguous().numpy().tobytes())
    return _cached(content, pictures.split(BATCH), extractor, cache_dir)


def features_of_files(files: Sequence[Path], extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    """Features of picture files in their order, as `features_of`; unchanged files are hashed but not decoded."""
    content = hashlib.blake2b(digest_size=16)
    for file in files:
        content.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    batches = (torch.stack([read_picture(f) for f in files[i : i + BATCH]]) for i in range(0, len(files), BATCH))
    return _cached(content, batches, extractor, cache_dir)


def read_picture(file: str | Path) -> Tensor:
    """A picture file as (3, H, W) in [−1, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def _cached(content, batches: Iterable[Tensor], extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    content.update(extractor.key.encode())
    path = Path(cache_dir) / f"features-{content.hexdigest()}.safetensors" if cache_dir is not None else None
    if path is not None and path.is_file():
        try:
            return load_file(path)["features"]
        except SafetensorError:  # half a file: a cache is only worth making again
            path.unlink()
    features = torch.cat([torch.empty(0, extractor.dim), *(extractor(batch) for batch in batches)])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(
            {"features": features.contiguous()}, temporary, {"extractor": extractor.name, "resize": extractor.resize}
        )
        os.replace(temporary, path)
    return features
