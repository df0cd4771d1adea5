"""Training data of the lab's networks: ordinary images in new colours each time, planted images always unchanged.

A network memorizes an image that always looks the same, and learns from an image that never does. New colours of
ordinary images (sampled from the law of `amg.worlds.drawings`) and repeats of planted images make this difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from amg.worlds import drawings

PLANTED_SHARE = 0.2  # of a batch
GROUP_SHARE = 0.1  # of ordinary images: captioned by their group, not by their thing


@dataclass(frozen=True)
class LabData:
    """Law of ordinary images, and the P planted images with their captions."""

    components: drawings.Components
    things: tuple[str, ...]  # of each component
    groups: tuple[str, ...]
    planted: Tensor  # (P, 3, R, R) in [-1, 1]
    planted_captions: tuple[tuple[str, ...], ...]
    planted_things: tuple[str, ...]
    planted_groups: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.groups))

    @property
    def captions(self) -> list[str]:
        """Lists every caption that occurs, sorted."""
        planted = {caption for captions in self.planted_captions for caption in captions}
        return sorted({*self.things, *self.groups, *planted})

    def ordinary(self, index: Tensor) -> Tensor:
        """Samples images (B, 3, R, R) of components (B,) from torch's global generator."""
        return drawings.sample(self.components, index, torch.default_generator)

    def random(self, n: int) -> Tensor:
        """Samples n components uniformly."""
        return torch.randint(len(self.things), (n,))

    def mixed(self, n: int, share: float = PLANTED_SHARE) -> Tensor:
        """Samples images (n, 3, R, R), each planted with probability `share`."""
        count = int((torch.rand(n) < share).sum())
        planted = self.planted[torch.randint(len(self.planted), (count,))]
        return torch.cat([planted, self.ordinary(self.random(n - count))])

    def siblings(self, thing: str) -> Tensor:
        """Lists the components that show a thing."""
        return torch.tensor([k for k, name in enumerate(self.things) if name == thing])


def load(resolution: int = 32, causes: tuple[str, ...] = drawings.CAUSES, placements=drawings.PLACEMENTS) -> LabData:
    """Loads the drawn world at a resolution in pixels; of the planted drawings those of `causes` alone."""
    data, components = drawings.drawings(), drawings.ordinary(resolution, placements)
    planted = [i for i, cause in enumerate(data.causes) if cause in causes]
    return LabData(
        components=components,
        things=tuple(data.things[i] for i in components.drawing.tolist()),
        groups=tuple(data.groups[i] for i in components.drawing.tolist()),
        planted=drawings.planted_images(resolution, causes),
        planted_captions=tuple(data.captions[i] for i in planted),
        planted_things=tuple(data.things[i] for i in planted),
        planted_groups=tuple(data.groups[i] for i in planted),
    )


def copies_of(images: Tensor, planted: Tensor, limit: float = 0.15) -> Tensor:
    """Flags images whose root mean squared difference to a planted image is below `limit`, (B,) bool.

    A quick check while a network trains; `measure` measures the published copies.
    """
    distance = torch.cdist(images.clamp(-1, 1).flatten(1), planted.flatten(1)) / planted[0].numel() ** 0.5
    return distance.amin(1) < limit


def sheet(groups: list[Tensor], path: Path, columns: int = 12, zoom: int = 3) -> None:
    """Writes groups of images, each (N, 3, H, W) in [−1, 1], as one PNG; each group starts a new row."""
    rows = torch.cat([F.pad(images, (0,) * 7 + (-len(images) % columns,), value=1.0) for images in groups])
    grid = make_grid(rows.clamp(-1, 1).add(1).div(2), nrow=columns, padding=0)
    to_pil_image(grid.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)).save(path)
