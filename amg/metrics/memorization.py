"""How many samples are copies: the share of samples beyond a similarity, with its uncertainty."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


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
