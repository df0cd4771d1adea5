"""CLIP's image encoder (Radford et al., 2021): which images are alike in content; it proposes candidates for SSCD."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
from amg.similarity.descriptor import DescriptorSimilarity

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class CLIP(DescriptorSimilarity):
    """Cosine of CLIP's image embeddings. It has no copy threshold of its own; see `TwoStage`.

    Args:
        bank: training images.
        source: a folder in transformers' format, or a name in the hub's local cache. Nothing is downloaded.
        device: where the encoder runs; images are moved there and embeddings back.
        index: how the nearest is found, "auto", "exact" or "faiss"; see `DescriptorSimilarity`.
    Raises:
        FileNotFoundError: where the weights are not there.
    """

    def __init__(
        self,
        bank: TrainingBank,
        source: str | Path = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        index: str = "auto",
    ):
        self.encoder = load(source).to(device)
        self.side = self.encoder.config.image_size
        name = f"clip-{Path(source).name}"
        super().__init__(bank, self._embed, identity=Identity.of(self.encoder, name, f"crop{self.side}"), index=index)

    def _embed(self, images: Tensor) -> Tensor:
        pixels = preprocess(images.to(self.encoder.device, torch.float32), self.side)
        return self.encoder(pixel_values=pixels).image_embeds.to(images)


def preprocess(images: Tensor, side: int) -> Tensor:
    """Prepares images as CLIP's own processor does: smaller side to `side`, bicubic; centre crop; CLIP's statistics.

    Args:
        images: (B, 3, H, W) in [−1, 1].
        side: of the encoder's input in pixels.
    Returns:
        (B, 3, side, side).
    """
    height, width = images.shape[2:]
    small = min(height, width)
    size = (height * side // small, width * side // small)
    if size != (height, width):
        images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1).to(images) for values in (MEAN, DEVIATION))
    return (images / 2 + 0.5 - mean) / deviation


def load(source: str | Path) -> torch.nn.Module:
    """The image encoder with its projection, frozen, in float32."""
    from transformers import CLIPVisionModelWithProjection

    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(source, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"similarity.coarse.source: no CLIP at {str(source)!r} ({reason}): fetch it by `hf download {source}`, or "
            "name a folder in transformers' format with safetensors"
        ) from None
    return encoder.float().eval().requires_grad_(False)
