"""The prompt's embedding, optimized until the text says little at the first step (Wen et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance, require_gradients
from amg.models.base import Condition, take
from amg.step import Start
from amg.tensors import norm


class PromptEmbeddingOptimization(Guidance):
    """AdamW on the token embeddings e of each sample, on the loss ‖ε(x_T, T, e) − ε(x_T, T, ∅)‖₂, until it is small.

    A sample whose loss is at or below the target is left alone, from the start or from then on. The first token's
    gradient is zeroed. Sampling goes on from the same x_T.

    Args:
        target: the loss of one sample at which it stops; inf never begins. The authors' `l_target` bounds one norm over
            a whole batch of n samples of a prompt, which grows as √n: their 3 at their default n = 4 is 1.5 here, and
            their sweep 1 … 7 is 0.5 … 3.5. It also grows as √(C·H·W), 128 for the 4 × 64 × 64 latents of theirs.
        lr, weight_decay: of AdamW.
        iterations: steps at most; 0 is plain sampling. Each costs one network row with its gradient per sample.

    Of a condition with several parts the sequence of token embeddings alone is optimized. Without CFG, which gives the
    null condition, nothing is done. Embeddings in half precision are optimized in float32.
    """

    needs_prompts = needs_text_encoder = needs_cfg = True

    def __init__(self, target: float = 1.5, lr: float = 0.05, weight_decay: float = 0.01, iterations: int = 10):
        for name, value in (("target", target), ("lr", lr), ("weight_decay", weight_decay), ("iterations", iterations)):
            if not value >= 0:
                raise ValueError(f"guidance.{name} must be >= 0, got {value}")
        self.target, self.lr, self.weight_decay, self.iterations = target, lr, weight_decay, iterations

    def prepare(self, model: Any, prompts, condition: Condition, x_T: Tensor, seeds: Sequence[int], start: Start):
        if start.null is None or self.iterations == 0 or self.target == float("inf"):
            return condition, x_T
        require_gradients(getattr(model, "unet", None))
        with torch.inference_mode(False):
            return self._optimized(condition, x_T.clone(), start), x_T

    def _optimized(self, condition: Condition, x_T: Tensor, start: Start) -> Condition:
        tokens = _tokens(condition)
        e = tokens.to(torch.promote_types(tokens.dtype, torch.float32), copy=True).requires_grad_()
        optimizer = torch.optim.AdamW([e], lr=self.lr, weight_decay=self.weight_decay)
        with torch.no_grad():
            null = start.predict(x_T, start.null)
        active = torch.ones(len(e), dtype=torch.bool, device=e.device)
        for _ in range(self.iterations):
            rows = active.nonzero().flatten()
            with torch.enable_grad():
                here = _with_tokens(take(condition, rows), e[rows].to(tokens.dtype))
                difference = (start.predict(x_T[rows], here) - null[rows]).to(e.dtype)
                loss = norm(difference)
                above = loss > self.target
                if not above.any():
                    break
                (e.grad,) = torch.autograd.grad(loss[above].sum(), e)
            active[rows] = above
            e.grad[:, 0] = 0
            before = e.detach().clone()
            optimizer.step()
            with torch.no_grad():  # momentum and decay would go on moving the samples that are done
                e.copy_(torch.where(active.view(-1, 1, 1), e, before))
        return _with_tokens(condition, e.detach().to(tokens.dtype))


def _tokens(condition: Condition) -> Tensor:
    """(B, L, D)."""
    return condition["encoder_hidden_states"] if isinstance(condition, dict) else condition


def _with_tokens(condition: Condition, tokens: Tensor) -> Condition:
    return {**condition, "encoder_hidden_states": tokens} if isinstance(condition, dict) else tokens
