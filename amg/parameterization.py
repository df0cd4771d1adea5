"""What a network predicts (ε, v or x_0) and ε, both ways, in the variance-preserving view."""

from __future__ import annotations

from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def to_eps(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The noise prediction that a network's output stands for.

    Args:
        output: ε, v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho, 2022) or x_0, (B, C, H, W).
        x_t: (B, C, H, W).
        alpha_bar: ᾱ_t in (0, 1), (B,).
        prediction_type: diffusers' name: `epsilon`, `v_prediction` or `sample`.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return signal * output + noise * x_t
    if prediction_type == "sample":
        return (x_t - signal * output) / noise
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def to_x0(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The clean sample that a network's output stands for; exact where the network predicts it."""
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output
    return (x_t - noise * output) / signal


def add_eps(output: Tensor, change: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The output whose ε is larger by `change`, x_t fixed: Δv = Δε / √ᾱ, Δx_0 = −√(1−ᾱ)/√ᾱ Δε.

    At ᾱ = 0 (zero terminal SNR) x_t is noise alone: no output has another ε, and none is changed.
    """
    signal, noise = _roots(alpha_bar, output)
    if prediction_type == "epsilon":
        return output + change
    inverse = (1 / signal).masked_fill(signal == 0, 0)
    return output + change * (inverse if prediction_type == "v_prediction" else -noise * inverse)


def _roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)
