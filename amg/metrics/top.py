"""The tail of the similarities: "Top5%" and "Top1" of the paper's tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def top(similarity: Tensor, percent: float) -> float:
    """The similarity that the upper `percent` of samples reach: a percentile, not the mean of the worst.

    With similarity = −nL2 this is the negated `percent`-th percentile of the distance.

    Args:
        similarity: (N,), N > 0; larger is more alike.
        percent: in [0, 100]; 5 is the 95th percentile, 0 the largest.
    """
    if not similarity.numel():
        raise ValueError("top similarity of no samples")
    if similarity.isnan().any():
        raise ValueError(f"{int(similarity.isnan().sum())} of {similarity.numel()} similarities are NaN")
    # not torch.quantile, which refuses more than 16 million values; linear between neighbours, as numpy's percentile
    ordered = similarity.double().flatten().sort().values
    position = (1 - percent / 100) * (len(ordered) - 1)
    below = min(int(position), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below).item()


class TopSimilarity(Metric):
    """Percentile of the similarities from the top: percent=5 is "Top5%", percent=0 is "Top1".

    >>> worst = TopSimilarity(percent=0)
    >>> worst.update(torch.tensor([0.25, 0.5]))
    >>> worst.compute()
    {'value': 0.5, 'n': 2, 'percent': 0}
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, percent: float):
        super().__init__()
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must lie in [0, 100], got {percent}")
        self.percent = percent
        self.add_state("similarities", [], dist_reduce_fx="cat")

    def update(self, similarity: Tensor) -> None:
        self.similarities.append(similarity.detach().flatten())

    def compute(self) -> dict[str, Any]:
        similarity = dim_zero_cat(self.similarities)
        return {"value": top(similarity, self.percent), "n": similarity.numel(), "percent": self.percent}


class Top5(TopSimilarity):
    """The paper's "Top5%": the 95th percentile of similarity, the 5th of nL2 distance."""

    def __init__(self):
        super().__init__(percent=5)


class Top1(TopSimilarity):
    """The paper's "Top1": the most similar sample."""

    def __init__(self):
        super().__init__(percent=0)
