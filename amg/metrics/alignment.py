"""Alignment of an image with its prompt, by any network that embeds both: cosine × 100, as CLIP score.

The paper's network is the ViT-L/14 of CLIP (Radford et al., 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.similarity.clip import preprocess

SOURCE = "openai/clip-vit-large-patch14"


class Scorer(Protocol):
    """Embeds images and texts into one space."""

    def image(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [−1, 1] to (B, D)."""

    def text(self, texts: Sequence[str]) -> Tensor:
        """B texts to (B, D)."""


def alignment(image: Tensor, text: Tensor) -> Tensor:
    """100 · cos(image, text), (B, D) each, to (B,) in [−100, 100]."""
    return 100 * F.cosine_similarity(image.double(), text.double(), dim=1)


class CLIPScorer:
    """Embeds images and texts by a CLIP in transformers' format.

    Args:
        source: a folder, or a name in the hub's cache on this machine; nothing is downloaded.
        device: where the networks run; embeddings come back on the CPU.
    Raises:
        FileNotFoundError: where the weights are not there.
    """

    def __init__(self, source: str | Path = SOURCE, device: str | torch.device = "cpu"):
        from transformers import CLIPModel, CLIPTokenizer

        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
            model = CLIPModel.from_pretrained(source, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:  # what transformers raises for a missing file, and for a broken one
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise FileNotFoundError(
                f"no CLIP at {str(source)!r} ({reason}): fetch it by `hf download {source}`"
            ) from None
        self.model = model.to(device).float().eval().requires_grad_(False)
        self.side, self.device = model.config.vision_config.image_size, device

    @torch.no_grad()
    def image(self, pictures: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [−1, 1] to (B, D), prepared by `amg.similarity.clip.preprocess`."""
        pixels = preprocess(pictures.to(self.device, torch.float32), self.side)
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output).cpu()

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """B texts to (B, D); long ones are cut at CLIP's 77 tokens, as the model that drew the images does."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return self.model.text_projection(self.model.text_model(**tokens).pooler_output).cpu()
