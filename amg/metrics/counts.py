"""How many samples are copies, and the tail of the similarities ("Top5%" and "Top1" of the paper's tables)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def share(count: int, n: int, confidence: float = 0.95) -> dict[str, Any]:
    """A share with its count and Wilson interval.

    Args:
        count: how many of the n samples.
        n: >= 0; of no samples the share is None and the interval [0, 1].
        confidence: of the interval, in (0, 1).
    Returns:
        {"count", "n", "share", "low", "high"}, the last three in [0, 1].
    """
    from scipy.stats import binomtest

    if n == 0:
        return {"count": 0, "n": 0, "share": None, "low": 0.0, "high": 1.0}
    interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return {"count": count, "n": n, "share": count / n, "low": float(interval.low), "high": float(interval.high)}


def count_beyond(similarity: Tensor, threshold: float) -> int:
    """Samples with similarity > threshold; for nL2 the threshold is negated too: distance < 1.4 is similarity > −1.4.

    Raises:
        ValueError: for a similarity that is NaN, which would pass for novel.
    """
    broken = int(similarity.isnan().sum())
    if broken:
        raise ValueError(f"{broken} of {similarity.numel()} similarities are NaN: those samples diverged")
    if not math.isfinite(threshold):
        raise ValueError(f"the threshold of a copy must be finite, got {threshold}")
    return int((similarity > threshold).sum())


class MemorizedShare(Metric):
    """Share of samples whose similarity exceeds a threshold ("% beyond" of Tables 1 to 5).

    >>> memorized = MemorizedShare(threshold=0.5)
    >>> memorized.update(torch.tensor([0.91, 0.32, 0.40]))
    >>> memorized.compute()["count"]
    1
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, threshold: float, confidence: float = 0.95):
        super().__init__()
        self.threshold, self.confidence = threshold, confidence
        self.add_state("copies", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, similarity: Tensor) -> None:
        self.copies += count_beyond(similarity, self.threshold)
        self.total += similarity.numel()

    def compute(self) -> dict[str, Any]:
        return share(int(self.copies), int(self.total), self.confidence) | {"threshold": self.threshold}


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
