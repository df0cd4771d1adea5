"""The caption that G_dup steers away from: duplicated captions make prompts copy (Somepalli et al., 2023)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from amg.bank.view import View


class CommonCaption:
    """The most common caption among a sample's nearest training images, if it occurs often enough.

    Captions are looked up as their images are met, so that a bank of any size costs nothing before. Of captions that
    are equally common, that of the nearer image is taken.

    Args:
        captions: of each training image, most frequent first; empty where it has none.
        multiplicity: how often each image occurs, (N,). A repeat whose caption is not known counts for the first.
        count: a caption is common if it occurs more than `count` times.
    """

    def __init__(self, captions: Sequence[Sequence[str]], multiplicity: Tensor, count: int):
        self.count, self._captions, self._multiplicity = count, captions, multiplicity
        self.names: list[str] = []
        """Captions that were answered; what a call answers are indices into them."""
        self._numbers: dict[str, int] = {}

    @cached_property
    def any(self) -> bool:
        """Tells whether there is a caption at all."""
        return any(any(names) for names in self._captions)

    def __call__(self, near: Tensor) -> Tensor:
        """Index of the most common caption among the images `near`, (R, k), or −1 where none is common, (R,)."""
        near = near.cpu()
        rows = near.unique().tolist()
        listed = self._captions[rows] if isinstance(self._captions, View) else [self._captions[row] for row in rows]
        known = dict(zip(rows, listed, strict=True))
        return torch.tensor([self._common(row, known) for row in near.tolist()])

    def _common(self, near: list[int], known: dict[int, Sequence[str]]) -> int:
        counts: Counter[str] = Counter()
        for image in near:
            names = [name for name in known[image] if name]
            counts.update(names)
            if names:
                counts[names[0]] += max(int(self._multiplicity[image]) - len(known[image]), 0)
        name, most = counts.most_common(1)[0] if counts else ("", 0)
        if most <= self.count:
            return -1
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]
