"""Fréchet distance of two sets of images in the features of a named network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amg.metrics.extractors import Extractor
from amg.metrics.values import Mean

BLOCKS = 10
"""Of the jackknife of `matched_distance`."""


def fid(features: Tensor, reference: Tensor, extractor: Extractor) -> float:
    """Fréchet distance of sample features (N, D) from reference features (R, D).

    clean-fid computes it from the features of its own Inception network, `frechet_between` from all others.
    """
    if extractor.cleanfid:
        from cleanfid.fid import fid_from_feats

        return float(fid_from_feats(features.double().numpy(), reference.double().numpy()))
    return frechet_between(features, *moments(reference))


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: ‖μ1 − μ2‖² + tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½).

    tr (Σ1 Σ2)^½ is the sum of the roots of the eigenvalues of Σ1^½ Σ2 Σ1^½, a symmetric matrix: real, stable for
    singular Σ, and free of scipy's `sqrtm`.

    Args:
        mu1, mu2: means, (D,).
        cov1, cov2: covariances, (D, D), symmetric and positive semi-definite.
    Returns:
        The distance, >= 0, computed in float64.
    """
    mu1, cov1, mu2, cov2 = (value.double() for value in (mu1, cov1, mu2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return _distance(mu1, root, mu2, cov2)


def frechet_between(features: Tensor, mu: Tensor, cov: Tensor) -> float:
    """`frechet_distance` of features (N, D) from a Gaussian: equal to it, and fast where N is well below D.

    The centred features over √(N−1) are a root of their covariance with only N rows.
    """
    mu1 = features.double().mean(0)
    root = (features.double() - mu1) / (len(features) - 1) ** 0.5
    if len(root) > root.shape[1]:
        return frechet_distance(mu1, root.T @ root, mu, cov)
    return _distance(mu1, root, mu.double(), cov.double())


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by N − 1, of features (N, D), in float64."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")
    return features.double().mean(0), torch.cov(features.double().T)


def _distance(mu1: Tensor, root1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """root1ᵀ root1 = Σ1, (R, D)."""
    mixed = root1 @ cov2 @ root1.T
    cross = torch.linalg.eigvalsh((mixed + mixed.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + root1.square().sum() + cov2.trace() - 2 * cross
    return max(distance.item(), 0.0)


def matched_distance(guided: Tensor, unguided: Tensor, unguided_copies: Tensor, reference: Tensor) -> dict[str, Any]:
    """Fréchet distances of guided and of unguided, uncopied images from one reference, at one n.

    Copies are drawn from the reference itself and pull an unguided distance down; fewer images push any distance up.
    So copies are left out of the unguided side, and both sides keep their first n images.

    Args:
        guided: features, (N, D).
        unguided: features, (M, D).
        unguided_copies: (M,) bool.
        reference: features, (R, D).
    Returns:
        {"guided", "unguided", "ratio", "n", "reference_n"}: `ratio` is guided / unguided as a `Mean`. The first three
        are None if fewer than 2 · BLOCKS images are left.
    """
    novel = unguided[~unguided_copies]
    n = min(len(guided), len(novel))
    sizes = {"n": n, "reference_n": len(reference)}
    if n < 2 * BLOCKS:
        return dict.fromkeys(("guided", "unguided", "ratio")) | sizes
    mu, cov = moments(reference)

    def distances(rows: Tensor) -> tuple[float, float]:
        return frechet_between(guided[:n][rows], mu, cov), frechet_between(novel[:n][rows], mu, cov)

    # jackknife: the ratio without each block of rows in turn; an n a tenth smaller shifts all of them alike
    rows = torch.arange(n)
    ratios = torch.tensor([a / b for a, b in (distances(rows[rows % BLOCKS != block]) for block in range(BLOCKS))])
    error = ((BLOCKS - 1) * ratios.var(correction=0)).sqrt().item()
    first, second = distances(rows)
    return {"guided": first, "unguided": second, "ratio": Mean(first / second, n, error)} | sizes
