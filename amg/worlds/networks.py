"""The lab's small networks: two copy descriptors and a CLIP-style scorer.

The descriptors, after the idea of SSCD (Pizzi et al., 2022), are of different build and seed. Both map (B, 3, 32, 32)
in [-1, 1] to unit vectors; the cosine of two is high where one image is a copy of the other, however cropped,
shifted, blurred or recoloured. `guide` can give AMG its gradient (`similarity=lab_guide`); `judge` only counts, so that
an image that merely fools the guide is still seen. Trained by `experiments/recipes/lab/train_descriptor.py`.

The scorer says how well an image answers its caption. Trained by `experiments/recipes/lab/train_scorer.py`, apart from
the generators and the descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTokenizer


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity, each after group norm and SiLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Guide(nn.Module):
    """Residual, group-normalised, pooled over places by the generalised mean (GeM, p = 3)."""

    def __init__(self, width: int = 40, size: int = 128):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
        for factor in (1, 2):
            layers += [Residual(factor * width), nn.Conv2d(factor * width, 2 * factor * width, 3, stride=2, padding=1)]
        layers += [Residual(4 * width), nn.GroupNorm(8, 4 * width)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, size)

    def embed(self, images: Tensor) -> Tensor:
        """Before it is taken to unit length."""
        x = F.softplus(self.trunk(images)).clamp(min=1e-4)  # the root below has no gradient at 0
        return self.head(x.pow(3).mean((2, 3)).pow(1 / 3))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.embed(images), dim=1)


class Judge(nn.Module):
    """Plain convolutions with max pooling, batch-normalised; its head sees a 4×4 map of places, not their mean."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), size: int = 192):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            for _ in "12":
                layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
                if len(layers) == 3:
                    layers.append(nn.MaxPool2d(2))  # already after the first: 32×32 costs too much
            if width != widths[0]:
                layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(before, 32, 1)
        self.head = nn.Linear(32 * 16, size)

    def embed(self, images: Tensor) -> Tensor:
        """Before it is taken to unit length."""
        return self.head(self.squeeze(self.trunk(images)).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.embed(images), dim=1)


DESCRIPTORS = {"guide": Guide, "judge": Judge}


class Scorer(nn.Module):
    """Two towers with one cosine: `image` and `text` give unit vectors (B, D).

    The image tower has the build of `Guide` and weights of its own.
    """

    def __init__(self, config: CLIPTextConfig, tokenizer: CLIPTokenizer):
        from transformers import CLIPTextModelWithProjection

        super().__init__()
        self.tokenizer = tokenizer
        self.image_tower = Guide(size=config.projection_dim)
        self.text_tower = CLIPTextModelWithProjection(config)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # e^2.66 = 1 / 0.07, CLIP's start

    def image(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) in [-1, 1] to unit vectors (B, D)."""
        return self.image_tower(images)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions to unit vectors (B, D)."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self.log_scale.device)
        return F.normalize(self.text_tower(ids).text_embeds, dim=1)

    def forward(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of each image and its own caption, (B,)."""
        return (self.image(images) * self.text(captions)).sum(1)


def load(folder: Path) -> Scorer:
    """A scorer from a folder with `tokenizer/`, `text.json` (the text tower's configuration), `scorer.safetensors`."""
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTokenizer

    config = CLIPTextConfig.from_json_file(folder / "text.json")
    net = Scorer(config, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    net.load_state_dict(load_file(folder / "scorer.safetensors"))
    return net.float().eval().requires_grad_(False)
