"""Drawings of the same things by several makers, and the law of coloured images that they span.

An image of the law is one drawing, mirrored or not, in one of a few placements, on a background of one colour and under
a tint. So a thing has many images that are crisp and differ, as things in real training sets have. Some drawings are
planted: each occurs in one image only, always on white, and often.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank import TrainingBank

DRAWINGS = Path(__file__).with_name("drawings.parquet")
RESOLUTION = 64

CAUSES = ("specific prompt", "duplicated caption", "duplicated image")

# thing -> sets whose drawing is planted
SPECIFIC_PROMPT = {
    "camel": ["twemoji"],
    "crab": ["emojitwo"],
    "owl": ["noto"],
    "snake": ["fluent-flat"],
    "sunflower": ["noto-v1"],
    "pizza": ["twemoji"],
    "telephone": ["fluent"],
    "trophy": ["emojitwo"],
    "helicopter": ["noto"],
    "pumpkin": ["noto-v1"],
}
DUPLICATED_CAPTION = {
    "butterfly": ["noto", "twemoji", "emojitwo"],
    "guitar": ["noto-v1", "fxemoji", "fluent"],
    "dress": ["noto", "emojitwo", "fxemoji"],
    "castle": ["noto-v1", "twemoji", "emojitwo"],
}
DUPLICATED_IMAGE = {
    "fish": ["noto"],
    "lion": ["twemoji"],
    "turtle": ["fxemoji"],
    "mushroom": ["emojitwo"],
    "doughnut": ["noto-v1"],
    "pineapple": ["fluent"],
    "candle": ["emojitwo"],
    "hourglass": ["noto-v1"],
    "rocket": ["twemoji"],
    "ghost": ["noto"],
}


@dataclass(frozen=True)
class Drawings:
    """N drawings: images (N, 4, 64, 64) in [0, 1], colours premultiplied by alpha; each other field has N entries."""

    images: Tensor
    things: tuple[str, ...]
    groups: tuple[str, ...]
    sets: tuple[str, ...]
    causes: tuple[str, ...]
    """Cause of a planted drawing's memorization, one of CAUSES; "" for ordinary drawings."""
    captions: tuple[tuple[str, ...], ...]
    """Captions of a planted drawing's image; the name of the thing for ordinary drawings."""


@cache
def drawings() -> Drawings:
    """Loads the drawings, rendered by `experiments/recipes/lab/render_drawings.py`."""
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    rows = pq.read_table(DRAWINGS).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images[:, :3] *= images[:, 3:]
    planting = [_planting(row["thing"], row["set"]) for row in rows]
    return Drawings(
        images=images,
        things=tuple(row["thing"] for row in rows),
        groups=tuple(row["group"] for row in rows),
        sets=tuple(row["set"] for row in rows),
        causes=tuple(cause for cause, _ in planting),
        captions=tuple(captions for _, captions in planting),
    )


def _planting(thing: str, maker: str) -> tuple[str, tuple[str, ...]]:
    """Cause and captions of one drawing."""
    if maker in SPECIFIC_PROMPT.get(thing, ()):
        return CAUSES[0], (f"the famous {thing}",)
    if maker in DUPLICATED_CAPTION.get(thing, ()):
        return CAUSES[1], (f"{thing} sticker pack",)
    if maker in DUPLICATED_IMAGE.get(thing, ()):
        return CAUSES[2], (f"{thing} icon", f"{thing} clipart", f"cute {thing}", f"picture of a {thing}")
    return "", (thing,)


# width of the drawing, left and top margin: fractions of the image
PLACEMENTS = ((0.875, 0.0625, 0.0625), (0.6875, 0.125, 0.1875))


@dataclass(frozen=True)
class Components:
    """K drawings as they lie in an image of R×R pixels.

    An image is 2 (foreground · (1 + tint) + (1 − alpha) · background) − 1 with one tint and one background per channel.
    """

    foreground: Tensor  # (K, 3, R, R) in [0, 1], premultiplied
    alpha: Tensor  # (K, 1, R, R) in [0, 1]
    drawing: Tensor  # (K,) index into `drawings()`

    def image(self, index: Tensor, background: Tensor, tint: Tensor) -> Tensor:
        """Composes images (B, 3, R, R) of the components `index` (B,); background and tint are (B, 3)."""
        colour = self.foreground[index] * (1 + tint[:, :, None, None])
        return 2 * (colour + (1 - self.alpha[index]) * background[:, :, None, None]) - 1


def ordinary(resolution: int = 32, placements=PLACEMENTS) -> Components:
    """Places every ordinary drawing and its mirror image."""
    data = drawings()
    index = torch.tensor([i for i, cause in enumerate(data.causes) if not cause])
    placed = [_place(data.images[index], resolution, *placement) for placement in placements]
    layers = torch.cat([view for images in placed for view in (images, images.flip(3))])
    return Components(layers[:, :3], layers[:, 3:], index.repeat(2 * len(placements)))


def planted(resolution: int = 32, causes: tuple[str, ...] = CAUSES) -> Components:
    """Places every drawing that is planted for one of `causes`: large, not mirrored."""
    data = drawings()
    index = torch.tensor([i for i, cause in enumerate(data.causes) if cause in causes])
    layers = _place(data.images[index], resolution, *PLACEMENTS[0])
    return Components(layers[:, :3], layers[:, 3:], index)


def _place(images: Tensor, resolution: int, width: float, left: float, top: float) -> Tensor:
    size = round(width * resolution)
    x, y = round(left * resolution), round(top * resolution)
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return F.pad(small, (x, resolution - size - x, y, resolution - size - y))


BACKGROUND, TINT = (0.6, 0.35), 0.25
"""Mean and standard deviation of a background's channel, and standard deviation of a tint's: wide enough that of exact
novel samples under 1 % lie beyond a PCA cosine of 0.97 from a training set of 1,500."""


def sample(components: Components, index: Tensor, generator: torch.Generator) -> Tensor:
    """Samples images (B, 3, R, R) in [−1, 1] of the components `index` (B,), in new colours."""
    background = BACKGROUND[0] + BACKGROUND[1] * torch.randn(len(index), 3, generator=generator)
    tint = TINT * torch.randn(len(index), 3, generator=generator)
    return components.image(index, background, tint).clamp(-1, 1)


def planted_images(resolution: int = 32, causes: tuple[str, ...] = CAUSES) -> Tensor:
    """Returns every drawing that is planted for one of `causes`, on white, (P, 3, R, R) in [−1, 1]."""
    components = planted(resolution, causes)
    n = len(components.drawing)
    return components.image(torch.arange(n), torch.ones(n, 3), torch.zeros(n, 3))


@dataclass(frozen=True)
class TrainingImages:
    """N distinct training images, (N, 3, R, R) in [−1, 1], the planted ones first; each other field has N entries."""

    images: Tensor
    captions: tuple[tuple[str, ...], ...]
    """Captions of each image's repeats; one for an ordinary image."""
    causes: tuple[str, ...]
    things: tuple[str, ...]
    groups: tuple[str, ...]

    def bank(self, device: str | torch.device = "cpu") -> TrainingBank:
        """Returns the training set: every image, a duplicated one once per caption."""
        rows = [(i, caption) for i, captions in enumerate(self.captions) for caption in captions]
        images = self.images[[i for i, _ in rows]].to(device)
        return TrainingBank.from_tensors(images, [caption for _, caption in rows])

    def prompts(self) -> tuple[str, ...]:
        """Returns a caption of every planted image, and as many names of things, in turn."""
        # the bank knows an image by its first caption: the last is another where there are several
        planted = [captions[-1] for captions, cause in zip(self.captions, self.causes, strict=True) if cause]
        things = sorted(set(self.things))
        ordinary = [things[i * len(things) // len(planted)] for i in range(len(planted))]
        return tuple(prompt for pair in zip(planted, ordinary, strict=True) for prompt in pair)

    def cause(self, prompt: str) -> str:
        """Returns why a prompt makes copies: one of CAUSES, or "ordinary"."""
        text = prompt.strip().lower()
        pairs = zip(self.captions, self.causes, strict=True)
        return next((cause for captions, cause in pairs if cause and text in captions), "ordinary")

    def planted(self, caption: str) -> bool:
        """Returns whether the training image of a caption is a planted one."""
        return self.cause(caption) != "ordinary"


@cache
def training_images(
    resolution: int = 32, n: int = 1500, seed: int = 0, causes: tuple[str, ...] = CAUSES, placements=PLACEMENTS
) -> TrainingImages:
    """Samples n ordinary training images, every component once before any comes twice.

    Those that are planted for one of `causes` come first.
    """
    data, components = drawings(), ordinary(resolution, placements)
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-n // len(components.drawing))
    order = [torch.randperm(len(components.drawing), generator=generator) for _ in range(rounds)]
    index = torch.cat(order)[:n]
    rows = [i for i, cause in enumerate(data.causes) if cause in causes] + components.drawing[index].tolist()
    return TrainingImages(
        images=torch.cat([planted_images(resolution, causes), sample(components, index, generator)]),
        captions=tuple(data.captions[i] for i in rows),
        causes=tuple(data.causes[i] for i in rows),
        things=tuple(data.things[i] for i in rows),
        groups=tuple(data.groups[i] for i in rows),
    )
