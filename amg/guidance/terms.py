"""The arithmetic of the three guidances (Eqs. 13–17), on tensors alone.

The functions return scales and one direction; the caller multiplies them with differences of noise predictions, so
that a scale of 0 costs no network call.
"""

import torch
from torch import Tensor

from amg.tensors import broadcast


def despecification_scale(similarity: Tensor, s0: float | Tensor, c1: float) -> Tensor:
    """s1 = max(min(c1 σ_t, s0 − 1), 0) (Eq. 13); G_spe = −s1 (ε(x_t, y) − ε(x_t)) (Eq. 14).

    Args:
        similarity: σ_t, (B,).
        s0: CFG scale; below 1 the result is 0 (`clamp(0, s0 - 1)` would be negative there).
        c1: strength, >= 0.
    Returns:
        s1, (B,), >= 0.
    """
    return _capped(c1 * similarity, s0 - 1)


def deduplication_scale(similarity: Tensor, s0: float | Tensor, s1: Tensor, c2: float) -> Tensor:
    """s2 = max(min(c2 σ_t, s0 − s1 − 1), 0) (Eq. 15); G_dup = −s2 (ε(x_t, y_N) − ε(x_t)) (Eq. 16).

    Args:
        similarity: σ_t, (B,).
        s0: CFG scale.
        s1: what `despecification_scale` returned, (B,); zeros where G_spe is off.
        c2: strength, >= 0.
    Returns:
        s2, (B,), >= 0, with s1 + s2 <= max(s0 − 1, 0).
    """
    return _capped(c2 * similarity, s0 - s1 - 1)


def dissimilarity(gradient: Tensor, alpha_bar: Tensor, c3: float | Tensor) -> Tensor:
    """G_sim = c3 √(1−ᾱ_t) ∇σ_t (Eq. 17): added to ε it moves x̂0 away from the neighbour.

    Args:
        gradient: ∇σ_t with respect to x_t, (B, C, H, W).
        alpha_bar: ᾱ_t in (0, 1), (B,).
        c3: strength, >= 0; a number or (B,).
    Returns:
        G_sim, (B, C, H, W).
    """
    scale = c3 * (1 - alpha_bar).sqrt()
    return broadcast(scale, gradient) * gradient


def _capped(scale: Tensor, cap: float | Tensor) -> Tensor:
    return torch.minimum(scale, torch.as_tensor(cap, dtype=scale.dtype, device=scale.device)).clamp(min=0)
