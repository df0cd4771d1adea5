"""The interface of every method that changes how a picture is sampled: AMG and its rivals alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor

from amg.step import Asked, Step


class Guidance:
    """Leaves sampling as it is; a method overrides the hooks that it needs.

    A guidance holds settings only. What it must remember from step to step is `state`: a frozen value with one row
    per sample, None at the first step, passed in and returned, never kept on the object.
    """

    needs_prompts = False
    """Whether the method works on text and is n/a for a model without it."""
    needs_attention = False
    """Whether it edits cross-attention and is n/a for a model whose class does not say `has_attention`."""
    needs_text_encoder = False
    """Whether it rewrites prompts or edits embeddings and is n/a for a model whose class does not say
    `has_text_encoder`."""
    needs_cfg = False
    """Whether it works on the difference of conditional and unconditional prediction and is n/a without CFG."""

    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        """Returns the noise prediction to use, (B, C, H, W), and the next state."""
        return step.eps, state

    def shift(self, step: Step, eps: Tensor, state: Any) -> Tensor | None:
        """Added to x_{t−1} after the scheduler's step, (B, C, H, W); None for nothing."""
        return None

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Rewrites the prompts before they are encoded."""
        return list(prompts)

    def prepare(self, model: Any, prompts: Sequence[str] | None, condition: Any, x_T: Tensor, seeds: Sequence[int]):
        """Edits the encoded condition or the initial noise; returns (condition, x_T)."""
        return condition, x_T

    def prepare_null(self, model: Any, null: Any, seeds: Sequence[int]) -> Any:
        """Edits the encoded null condition of classifier-free guidance."""
        return null

    def attach(self, model: Any, asked: Asked) -> AbstractContextManager:
        """A context in which the model is changed, e.g. its attention, and changed back at the end.

        Args:
            model: what is sampled; its `unet` is the denoiser. In `guard` it is the pipeline.
            asked: says at each call of the network what its rows are.
        """
        return nullcontext()


class Chain(Guidance):
    """Applies several guidances from left to right; its state is the tuple of theirs.

    Each sees the noise prediction as the ones before it left it, with the original conditional and unconditional
    predictions.
    """

    def __init__(self, guidances: Sequence[Guidance]):
        self.guidances = tuple(guidances)
        self.needs_prompts = any(guidance.needs_prompts for guidance in self.guidances)

    def __call__(self, step: Step, state: tuple | None) -> tuple[Tensor, tuple]:
        states = []
        for guidance, old in zip(self.guidances, state or (None,) * len(self.guidances), strict=True):
            eps, new = guidance(step, old)
            states.append(new)
            if eps is not step.eps:
                step = step.with_eps(eps)
        return step.eps, tuple(states)

    def shift(self, step: Step, eps: Tensor, state: tuple) -> Tensor | None:
        shifts = [guidance.shift(step, eps, own) for guidance, own in zip(self.guidances, state, strict=True)]
        shifts = [shift for shift in shifts if shift is not None]
        return sum(shifts) if shifts else None

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        for guidance in self.guidances:
            prompts = guidance.prompts(prompts, seeds)
        return list(prompts)

    def prepare(self, model, prompts, condition, x_T, seeds):
        for guidance in self.guidances:
            condition, x_T = guidance.prepare(model, prompts, condition, x_T, seeds)
        return condition, x_T

    def prepare_null(self, model, null, seeds):
        for guidance in self.guidances:
            null = guidance.prepare_null(model, null, seeds)
        return null

    @contextmanager
    def attach(self, model, asked):
        with ExitStack() as stack:
            for guidance in self.guidances:
                stack.enter_context(guidance.attach(model, asked))
            yield


def flat(guidance: Guidance) -> list[Guidance]:
    """The guidances of a chain, of chains within it too; any other as the only one."""
    if isinstance(guidance, Chain):
        return [one for part in guidance.guidances for one in flat(part)]
    return [guidance]
