"""Quality without flattery: guided pictures against as many unguided pictures that are no copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amg.metrics.frechet import frechet_between, moments

BLOCKS = 10


def matched_distance(guided: Tensor, unguided: Tensor, unguided_copies: Tensor, reference: Tensor) -> dict[str, Any]:
    """Fréchet distances of guided and of unguided, uncopied pictures from one reference, at one n.

    Copies are drawn from the reference itself and pull an unguided distance down; fewer pictures push any distance up.
    So copies are left out of the unguided side, and both sides keep their first n pictures.

    Args:
        guided: features, (N, D).
        unguided: features, (M, D).
        unguided_copies: (M,) bool.
        reference: features, (R, D).
    Returns:
        {"guided", "unguided", "ratio", "ratio_se", "n", "reference_n"}: `ratio` is guided / unguided, `ratio_se` its
        standard error by sampling. The first four are None where fewer than 2 · BLOCKS pictures are left.
    """
    novel = unguided[~unguided_copies]
    n = min(len(guided), len(novel))
    sizes = {"n": n, "reference_n": len(reference)}
    if n < 2 * BLOCKS:
        return dict.fromkeys(("guided", "unguided", "ratio", "ratio_se")) | sizes
    mu, cov = moments(reference)

    def distances(rows: Tensor) -> tuple[float, float]:
        return frechet_between(guided[:n][rows], mu, cov), frechet_between(novel[:n][rows], mu, cov)

    # jackknife: the ratio without each block of rows in turn; an n a tenth smaller shifts all of them alike
    rows = torch.arange(n)
    ratios = torch.tensor([a / b for a, b in (distances(rows[rows % BLOCKS != block]) for block in range(BLOCKS))])
    error = ((BLOCKS - 1) * ratios.var(correction=0)).sqrt().item()
    first, second = distances(rows)
    return {"guided": first, "unguided": second, "ratio": first / second, "ratio_se": error} | sizes
