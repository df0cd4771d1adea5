"""A sequence whose items are looked up when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

BLOCK = 4096
"""Items looked up at once by who goes through all."""


class View(Sequence):
    """A sequence of n items.

    `view[i]` is one item; a slice, a tensor or a list of numbers gives several, which `join` puts together.

    Args:
        digest: names what it holds.
    """

    def __init__(
        self, n: int, look: Callable[[Sequence[int]], list], join: Callable[[list], Any] = list, digest: str = ""
    ):
        self._n, self._look, self._join, self.digest = n, look, join, digest

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._join(self._look(range(*index.indices(self._n))))
        if isinstance(index, Tensor):
            index = index.tolist()
        if isinstance(index, (list, range)):
            return self._join(self._look([self._inside(i) for i in index]))
        return self._look([self._inside(int(index))])[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._n, BLOCK):
            yield from self._look(range(start, min(start + BLOCK, self._n)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(other) == self._n
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def _inside(self, index: int) -> int:
        if not -self._n <= index < self._n:
            raise IndexError(f"there is no entry {index} among {self._n}")
        return index % self._n
