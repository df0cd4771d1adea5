"""The interface of every method that changes how an image is sampled: AMG and its rivals alike."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from amg.guidance.looks import Looks
from amg.step import Asked, Start, Step


class Guidance:
    """Leaves sampling as it is; a method overrides the hooks that it needs.

    A guidance holds settings only. What it must remember from step to step is `state`: a frozen value with one row
    per sample, None at the first step, passed in and returned, never kept on the object.
    """

    needs_prompts = False
    """Works on text; n/a for a model without it."""
    needs_attention = False
    """Edits cross-attention; n/a for a model whose class does not say `has_attention`."""
    needs_text_encoder = False
    """Rewrites prompts or edits embeddings; n/a for a model whose class does not say `has_text_encoder`."""
    needs_variance = False
    """Needs a variance that the network learned; n/a for a model whose class does not say `learns_variance`."""
    needs_cfg = False
    """Works on the difference of conditional and unconditional prediction; n/a without CFG."""
    needs_points = False
    """Removes planted points from a known law; n/a for a model whose class does not say `has_points`."""
    embeds_captions = False
    """Asks for predictions under captions (`Step.denoise`), which need the text encoder."""

    lost_without_cfg = ""
    """Part of the method that is lost without CFG, in words; "" for nothing."""

    def ready(self) -> Guidance:
        """This guidance with all it must learn from other trajectories; called once, before the first sample."""
        return self

    def looking(self, looks: Looks | None) -> Guidance:
        """Returns this guidance with other rests between its looks at predicted images, if it rests."""
        return self

    def stronger(self) -> Guidance:
        """Returns this guidance with its strong constants, for an image that came out as a copy; itself without any."""
        return self

    def __call__(self, step: Step, state: Any) -> tuple[Tensor, Any]:
        """Returns the noise prediction to use, (B, C, H, W), and the next state."""
        return step.eps, state

    def record(self, state: Any) -> dict[str, Tensor]:
        """Returns what a run's records keep of the step that led to a state, (B,) each; {} for nothing.

        `guided` says whom the guidance acted on; `similarity`, `lam` and `flagged` are of the detection that it acts
        by; `spe`, `dup`, `sim` are the norms of AMG's terms, and `dropped` says whether the last was left out.
        """
        return {}

    def shift(self, step: Step, eps: Tensor, state: Any, x_prev: Tensor) -> Tensor | None:
        """Added to x_{t−1} after the scheduler's step, (B, C, H, W); None for nothing.

        Args:
            eps, state: what the call for this step returned.
            x_prev: x_{t−1} as the scheduler made it, in the variance-preserving view.
        """
        return None

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Rewrites the prompts before they are encoded."""
        return list(prompts)

    def prepare_null(self, model: Any, null: Any, seeds: Sequence[int]) -> Any:
        """Edits the encoded null condition of classifier-free guidance."""
        return null

    def prepare(
        self,
        model: Any,
        prompts: Sequence[str] | None,
        condition: Any,
        x_T: Tensor,
        seeds: Sequence[int],
        start: Start,
    ) -> tuple[Any, Tensor]:
        """Edits the encoded condition or the initial noise, after `prepare_null`; returns (condition, x_T)."""
        return condition, x_T

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
        for need in ("needs_prompts", "needs_attention", "needs_text_encoder", "needs_cfg", "needs_points"):
            setattr(self, need, any(getattr(guidance, need) for guidance in self.guidances))

    def ready(self) -> Chain:
        return Chain([guidance.ready() for guidance in self.guidances])

    def looking(self, looks: Looks | None) -> Chain:
        guidances = [guidance.looking(looks) for guidance in self.guidances]
        return self if all(map(operator.is_, guidances, self.guidances)) else Chain(guidances)

    def stronger(self) -> Chain:
        return Chain([guidance.stronger() for guidance in self.guidances])

    def __call__(self, step: Step, state: tuple | None) -> tuple[Tensor, tuple]:
        states = []
        for guidance, old in zip(self.guidances, state or (None,) * len(self.guidances), strict=True):
            eps, new = guidance(step, old)
            states.append(new)
            if eps is not step.eps:
                step = step.with_eps(eps)
        return step.eps, tuple(states)

    def record(self, state: tuple) -> dict[str, Tensor]:
        """Returns whom any of them acted on; of everything else, what the first keeps that keeps it."""
        result: dict[str, Tensor] = {}
        for guidance, own in zip(self.guidances, state, strict=True):
            new = guidance.record(own)
            result = new | result
            if "guided" in new:
                result["guided"] = result["guided"] | new["guided"]
        return result

    def shift(self, step: Step, eps: Tensor, state: tuple, x_prev: Tensor) -> Tensor | None:
        total = None
        for guidance, own in zip(self.guidances, state, strict=True):
            shift = guidance.shift(step, eps, own, x_prev)
            if shift is not None:
                total = shift if total is None else total + shift
                x_prev = x_prev + shift
        return total

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        for guidance in self.guidances:
            prompts = guidance.prompts(prompts, seeds)
        return list(prompts)

    def prepare_null(self, model, null, seeds):
        for guidance in self.guidances:
            null = guidance.prepare_null(model, null, seeds)
        return null

    def prepare(self, model, prompts, condition, x_T, seeds, start):
        for guidance in self.guidances:
            condition, x_T = guidance.prepare(model, prompts, condition, x_T, seeds, start)
        return condition, x_T

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


def rewriters(guidance: Guidance) -> list[str]:
    """Names the methods in a guidance that rewrite prompts."""
    return _overriding(guidance, "prompts")


def preparers(guidance: Guidance) -> list[str]:
    """Names the methods in a guidance that edit embeddings or the first noise."""
    return _overriding(guidance, "prepare", "prepare_null")


def _overriding(guidance: Guidance, *hooks: str) -> list[str]:
    return [
        type(method).__name__
        for method in flat(guidance)
        if any(getattr(type(method), hook, own) is not own for hook in hooks for own in [getattr(Guidance, hook)])
    ]


def require_gradients(*modules: Any) -> None:
    """Refuses modules whose weights were made under `torch.inference_mode`: no gradient passes them.

    Args:
        modules: torch modules, or objects that hold some as attributes; others, such as None, have no weights.
    Raises:
        ValueError: naming the module's class.
    """
    for part in modules:
        held = [part] if isinstance(part, nn.Module) else getattr(part, "__dict__", {}).values()
        for module in held:
            if isinstance(module, nn.Module) and any(weight.is_inference() for weight in module.parameters()):
                raise ValueError(
                    f"{type(module).__name__} was loaded under torch.inference_mode, where no gradient can be taken: "
                    "load it under torch.no_grad()"
                )
