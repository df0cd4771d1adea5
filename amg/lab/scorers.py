"""A CLIP-style image–text scorer for the lab's pictures: how well a picture answers its caption.

Trained by `experiments/recipes/train_lab_scorer.py`, apart from the generators and the descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from amg.lab.descriptors import Guide


class Scorer(nn.Module):
    """Two towers with one cosine: `image` and `text` give unit vectors (B, D).

    The image tower has the build of `Guide` and weights of its own.
    """

    def __init__(self, config: CLIPTextConfig, tokenizer: CLIPTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.image_tower = Guide(size=config.projection_dim)
        self.text_tower = CLIPTextModelWithProjection(config)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # e^2.66 = 1 / 0.07, CLIP's start

    def image(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32) in [-1, 1] to unit vectors (B, D)."""
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
        """Cosine of each picture and its own caption, (B,)."""
        return (self.image(images) * self.text(captions)).sum(1)


def load(folder: Path) -> Scorer:
    """A scorer from a folder with `tokenizer/`, `text.json` (the text tower's configuration), `scorer.safetensors`."""
    from safetensors.torch import load_file

    config = CLIPTextConfig.from_json_file(folder / "text.json")
    net = Scorer(config, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    net.load_state_dict(load_file(folder / "scorer.safetensors"))
    return net.float().eval().requires_grad_(False)


def scorer() -> Scorer:
    """The shipped scorer, frozen, in float32."""
    from amg.lab.weights import weights

    return load(weights("scorer"))
