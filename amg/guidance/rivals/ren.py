"""Cross-attention re-scaling (Ren et al., ECCV 2024)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.step import Asked


class CrossAttentionRescaling(Guidance):
    """Turns cross-attention towards the first token and away from the padding after the prompt.

    In every cross-attention of the U-Net, before the softmax: the logits of the first token (BOS) times `strength`, in
    conditional rows only; those of all positions after the prompt's end token to −∞, in both branches.

    Args:
        strength: C, > 0; the authors' 1.25, swept over 1.1 … 1.5. A product, as in their code: a negative logit becomes
            more negative.
        mask: whether positions after the prompt are hidden. The prompt of a sample decides for its unconditional row
            too.

    Raises:
        ValueError: when sampling begins, for a model without cross-attention, or one whose keys and values are fused;
            with the mask, for prompts that are not known in words.

    A logit is the product of a query and a key, so the first key is scaled instead, whatever kernel multiplies them.
    """

    needs_prompts = True
    needs_attention = True

    def __init__(self, strength: float = 1.25, mask: bool = True):
        if not strength > 0:
            raise ValueError(f"guidance.strength must be > 0, got {strength}")
        self.strength, self.mask = strength, mask

    @contextmanager
    def attach(self, model: Any, asked: Asked) -> Iterator[None]:
        @functools.cache
        def length(prompt: str) -> int:  # in tokens, BOS and EOS included
            limit = model.tokenizer.model_max_length
            return len(model.tokenizer(prompt, truncation=True, max_length=limit).input_ids)

        def rescale(module: Any, args: tuple, keys: Tensor) -> Tensor:
            conditional = torch.tensor(asked.conditional, device=keys.device).view(-1, 1, 1)
            first = torch.where(conditional, keys[:, :1] * self.strength, keys[:, :1])
            return torch.cat([first, keys[:, 1:]], dim=1)

        def hide(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if asked.prompts is None:
                raise ValueError(
                    "guidance.mask: ren counts the tokens of prompts in words: give prompts, or mask=false"
                )
            text = kwargs["encoder_hidden_states"]
            ends = torch.tensor([length(prompt) for prompt in asked.prompts], device=text.device)
            seen = torch.arange(text.shape[1], device=text.device) < ends[:, None]
            return args, {**kwargs, "encoder_attention_mask": seen}

        with ExitStack() as stack:
            for layer in _cross_attention(model):
                stack.callback(layer.to_k.register_forward_hook(rescale).remove)
            if self.mask:
                stack.callback(model.unet.register_forward_pre_hook(hide, with_kwargs=True).remove)
            yield


def _cross_attention(model: Any) -> list[Any]:
    network = getattr(model, "unet", None)
    layers = [] if network is None else [m for m in network.modules() if getattr(m, "is_cross_attention", False)]
    if not layers:
        raise ValueError(f"guidance: ren acts on cross-attention, and {type(model).__name__} has none")
    if any(layer.fused_projections for layer in layers):
        raise ValueError(
            "guidance: ren scales keys, and this model's are fused with its values: unfuse_qkv_projections"
        )
    return layers
