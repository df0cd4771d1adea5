"""The caption that G_dup steers away from: duplicated captions make prompts copy (Somepalli et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class CommonCaption:
    """The most common caption among a sample's nearest training images, if it occurs often enough.

    Args:
        captions: of each training image, most frequent first; empty where it has none.
        multiplicity: how often each picture occurs, (N,). A repeat whose caption is not known counts for the first.
        count: a caption is common if it occurs more than `count` times.
    """

    def __init__(self, captions: Sequence[Sequence[str]], multiplicity: Tensor, count: int):
        self.count = count
        self.names = list(dict.fromkeys(name for names in captions for name in names if name))
        """The distinct captions; what a call answers are indices into them."""
        place = {name: i for i, name in enumerate(self.names)}
        counts = torch.zeros(len(captions), max((len(names) for names in captions), default=0) or 1)
        ids = torch.full(counts.shape, len(self.names))
        for i, names in enumerate(captions):
            for j, name in enumerate(name for name in names if name):
                ids[i, j], counts[i, j] = place[name], 1
            if names:
                counts[i, 0] += max(int(multiplicity[i]) - len(names), 0)
        self._ids, self._counts = ids, counts

    def __call__(self, near: Tensor) -> Tensor:
        """Index of the most common caption among the pictures `near`, (R, k), or −1 where none is common, (R,)."""
        if not self.names:
            return torch.full((len(near),), -1)
        near = near.cpu()
        totals = torch.zeros(len(near), len(self.names) + 1)  # the last for pictures without a caption
        totals.scatter_add_(1, self._ids[near].flatten(1), self._counts[near].flatten(1))
        best = totals[:, :-1].max(1)
        return torch.where(best.values > self.count, best.indices, -1)
