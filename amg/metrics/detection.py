"""Quality of a detector's score: ROC, its area with an interval, TPR at a low FPR."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roc(scores: Tensor, memorized: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positives as the threshold falls, both (K + 1,) counts from 0, K distinct scores.

    Args:
        scores: (n,), larger is more likely memorized.
        memorized: the truth, (n,) bool.
    Raises:
        ValueError: for a score that is NaN, or where all samples are of one kind.
    """
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN: those samples diverged")
    if memorized.all() or not memorized.any():
        raise ValueError("an ROC needs both memorized and ordinary samples")
    order = scores.argsort(descending=True)
    ordered, true = scores[order], memorized[order].long().cumsum(0)
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # equal scores fall together
    false = torch.arange(1, len(ordered) + 1) - true
    zero = torch.zeros(1, dtype=torch.long)
    return torch.cat([zero, false[last]]), torch.cat([zero, true[last]])


def auc(scores: Tensor, memorized: Tensor) -> float:
    """Area under the ROC: how often a memorized sample outscores an ordinary one, ties counting half."""
    false, true = roc(scores, memorized)
    return float(torch.trapezoid(true.double(), false.double())) / int(true[-1]) / int(false[-1])


def auc_interval(area: float, memorized: int, ordinary: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC by the variance of Hanley & McNeil (1982) at the bound instead of at the estimate.

    As Wilson's interval of a share, it does not shrink to a point where the AUC is 1 (Newcombe, 2006).

    Args:
        area: the AUC, in [0, 1].
        memorized, ordinary: how many independent samples of each kind it rests on, >= 1.
    Returns:
        Both ends, in [0, 1].
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = norm.ppf(0.5 + confidence / 2)

    def error(bound: float) -> float:
        twice, square = bound / (2 - bound), bound**2
        variance = bound * (1 - bound) + (memorized - 1) * (twice - square)
        variance += (ordinary - 1) * (2 * square / (1 + bound) - square)
        return abs(area - bound) - z * math.sqrt(max(variance, 0.0) / (memorized * ordinary))

    inside = min(max(area, 1e-9), 1 - 1e-9)  # there the error bar is wider than the distance to `area`
    return (0.0 if area == 0 else brentq(error, 0, inside)), (1.0 if area == 1 else brentq(error, inside, 1))


def positives_at(scores: Tensor, memorized: Tensor, rate: float = 0.01) -> int:
    """True positives at the lowest threshold whose false-positive rate is at most `rate`; TPR is their share."""
    false, true = roc(scores, memorized)
    return int(true[false <= rate * int(false[-1]) + 1e-9].max())
