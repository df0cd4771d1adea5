"""How well a picture fits its prompt, by any network that embeds both: cosine × 100, as CLIP score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class Scorer(Protocol):
    """Embeds pictures and texts into one space."""

    def image(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [−1, 1] to (B, D)."""

    def text(self, texts: Sequence[str]) -> Tensor:
        """B texts to (B, D)."""


def alignment(image: Tensor, text: Tensor) -> Tensor:
    """100 · cos(image, text), (B, D) each, to (B,) in [−100, 100]."""
    return 100 * F.cosine_similarity(image.double(), text.double(), dim=1)


class AlignmentScore(Metric):
    """Mean alignment of pictures with their prompts ("CLIP" of Tables 1 and 4, with ViT-L/14 as the scorer).

    Args:
        scorer: embeds pictures and texts.
        name: of the scorer, for the result.
        resize: that the scorer applies, in words.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, scorer: Scorer, name: str, resize: str = "none"):
        super().__init__()
        self.scorer, self.name, self.resize = scorer, name, resize
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: Tensor, texts: Sequence[str]) -> None:
        if len(pictures) != len(texts):
            raise ValueError(f"alignment of {len(pictures)} pictures with {len(texts)} texts: one text each")
        with torch.no_grad():
            self.total += alignment(self.scorer.image(pictures), self.scorer.text(texts)).sum().to(self.total)
        self.n += len(texts)

    def compute(self) -> dict[str, Any]:
        if not self.n:
            raise ValueError("alignment of no pictures")
        value = (self.total / self.n).item()
        return {"value": value, "n": int(self.n), "extractor": self.name, "resize": self.resize}
