"""A model together with what is known about it: its training set, prompts, and the truth about its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from amg.bank import TrainingBank
from amg.models.base import Model
from amg.prompts import cause


class Truth(Protocol):
    """The exact law of a world's samples. Images are (B, 3, H, W) in [−1, 1]."""

    def copies(self, images: Tensor) -> Tensor:
        """Returns whether each image is a copy of a memorized training image, (B,) bool."""
        ...

    def component(self, images: Tensor) -> list[str]:
        """Returns the name of the component of the law that made each image, B names."""
        ...

    def answers(self, conditions: Sequence[str | int | None], images: Tensor) -> Tensor:
        """Returns whether each image shows what its own condition asks for, (B,) bool."""
        ...

    def bits(self, conditions: Sequence[str | int | None], images: Tensor) -> Tensor:
        """Returns log₂ of how much more probable memorization makes each image under its own condition, (B,)."""
        ...

    def rate(self, condition: str | int | None = None) -> float:
        """Returns the exact share of copies among samples of the condition."""
        ...


@dataclass(frozen=True)
class World:
    """A model together with what is known about it."""

    model: Model
    bank: TrainingBank | None = None
    """Its training images; None if they do not come with it."""
    prompts: tuple[str, ...] = ()
    """Default prompts; () if the model has none of its own, then nobody knows which of its prompts are ordinary."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0 … n − 1."""
    cause: Callable[[str], str] = cause
    """cause(prompt): why the prompt is memorized, "ordinary" for one that is not, "" if that is not known."""
    planted: Callable[[str], bool] | None = None
    """planted(caption): whether the training image of that caption was planted; None if nothing was."""
    truth: Truth | None = None
    """The exact law of the samples, if it is known."""

    def ordinary(self) -> list[str]:
        """Returns the default prompts that are not memorized."""
        return [prompt for prompt in self.prompts if self.cause(prompt) == "ordinary"]


@runtime_checkable
class Known(Protocol):
    """A model that comes with its world."""

    def world(self) -> World: ...


def of(model: Model, bank: TrainingBank | None = None) -> World:
    """Returns the world of a model: the one that its own `world()` describes, else the model and its classes only.

    Args:
        bank: training images to use instead of the world's own.
    Raises:
        ValueError: for a model that is no subclass of `Model`, whose defaults it would lack.
    """
    if Model not in type(model).__mro__:
        raise ValueError(f"{type(model).__name__} must be a subclass of amg.models.base.Model")
    world = model.world() if isinstance(model, Known) else World(model, classes=tuple(model.classes))
    return world if bank is None else replace(world, bank=bank)
