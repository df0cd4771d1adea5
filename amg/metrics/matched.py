"""Quality without flattery: guided pictures against as many unguided pictures that are no copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amg.metrics.frechet import frechet_between, moments


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
        {"guided", "unguided", "ratio", "n", "reference_n"}; distances None where fewer than 2 pictures are left.
    """
    novel = unguided[~unguided_copies]
    n = min(len(guided), len(novel))
    if n < 2:
        return {"guided": None, "unguided": None, "ratio": None, "n": n, "reference_n": len(reference)}
    mu, cov = moments(reference)
    first, second = (frechet_between(features[:n], mu, cov) for features in (guided, novel))
    ratio = first / second if second > 0 else None
    return {"guided": first, "unguided": second, "ratio": ratio, "n": n, "reference_n": len(reference)}
