"""Copies counted, similarities' tail ("Top5%" and "Top1" of the paper's tables) and means, summed over processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from amg.metrics.values import Mean, Share


class Counted(Metric):
    """Share of the samples of which something is true.

    >>> aligned = Counted()
    >>> aligned.update(torch.tensor([True, False, True]))
    >>> aligned.compute()
    Share(count=2, n=3)
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, true: Tensor) -> None:
        """true: (N,) bool."""
        self.count += int(true.sum())
        self.n += true.numel()

    def compute(self) -> Share:
        return Share(int(self.count), int(self.n))


class MemorizedShare(Counted):
    """Share of samples whose similarity exceeds a threshold ("% beyond" of Tables 1 to 5).

    For nL2 the threshold is negated too: distance < 1.4 is similarity > −1.4.

    >>> memorized = MemorizedShare(threshold=0.5)
    >>> memorized.update(torch.tensor([0.91, 0.32, 0.40]))
    >>> print(memorized.compute())
    1/3 (6.1–79.2 %)
    """

    higher_is_better = False

    def __init__(self, threshold: float):
        super().__init__()
        if not math.isfinite(threshold):
            raise ValueError(f"the threshold of a copy must be finite, got {threshold}")
        self.threshold = threshold

    def update(self, similarity: Tensor) -> None:
        """similarity: (N,). Raises ValueError for NaN, which would pass for novel."""
        _refuse_nan(similarity)
        super().update(similarity > self.threshold)


class TopSimilarity(Metric):
    """Percentile of the similarities from the top: percent=5 is "Top5%", percent=0 is "Top1".

    >>> worst = TopSimilarity(percent=0)
    >>> worst.update(torch.tensor([0.25, 0.5]))
    >>> worst.compute()
    0.5
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
        """similarity: (N,)."""
        self.similarities.append(similarity.detach().flatten())

    def compute(self) -> float:
        return top(dim_zero_cat(self.similarities), self.percent)


class Averaged(Metric):
    """Mean of a number per sample with its standard error, e.g. text alignment ("CLIP" of Tables 1 and 4)."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        for name in ("total", "squares"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """values: (N,)."""
        self.total += values.double().sum()
        self.squares += values.double().square().sum()
        self.n += values.numel()

    def compute(self) -> Mean:
        n = int(self.n)
        if not n:
            raise ValueError("mean of no samples")
        mean = self.total.item() / n
        spread = max(self.squares.item() - n * mean**2, 0.0)
        return Mean(mean, n, (spread / (n - 1) / n) ** 0.5 if n > 1 else None)


def top(similarity: Tensor, percent: float) -> float:
    """Returns the similarity that the upper `percent` of samples reach: a percentile, not the mean of the worst.

    With similarity = −nL2 this is the negated `percent`-th percentile of the distance.

    Args:
        similarity: (N,), N > 0; larger is more alike.
        percent: in [0, 100]; 5 is the 95th percentile, 0 the largest.
    """
    if not similarity.numel():
        raise ValueError("top similarity of no samples")
    _refuse_nan(similarity)
    # not torch.quantile, which refuses more than 16 million values; linear between neighbours, as numpy's percentile
    ordered = similarity.double().flatten().sort().values
    position = (1 - percent / 100) * (len(ordered) - 1)
    below = min(int(position), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below).item()


def _refuse_nan(similarity: Tensor) -> None:
    broken = int(similarity.isnan().sum())
    if broken:
        raise ValueError(f"{broken} of {similarity.numel()} similarities are NaN: those samples diverged")
