"""Named settings of Anti-Memorization Guidance for users who bring a pipeline and a bank."""

from __future__ import annotations

from dataclasses import dataclass

from amg.bank import TrainingBank
from amg.similarity.base import Similarity
from amg.similarity.sscd import SSCD
from amg.similarity.sscd_file import SHA256, SIZE
from amg.thresholds import Exponential, Threshold


@dataclass(frozen=True)
class Preset:
    c1: float
    c2: float
    c3: float
    threshold: Threshold


PRESETS = {
    # λ_t and c1 are the released code's for Stable Diffusion, decay(t; 0.3, 0.4, 0.005) and 6.5/0.5; its c2 is
    # (6.5 − s1)/0.3; c3 is its 100, without its course over t and σ. Untuned here: no Stable Diffusion weights.
    "sd-main": Preset(c1=13, c2=6.5 / 0.3, c3=100, threshold=Exponential(start=0.4, end=0.3, rate=4.995)),
    # The same a tenth lower, for the strict copy threshold of 0.4; untuned, the paper gives no constants.
    "sd-strong": Preset(c1=13, c2=6.5 / 0.3, c3=100, threshold=Exponential(start=0.3, end=0.2, rate=4.995)),
}


def preset(name: str, bank: TrainingBank, similarity: Similarity | None = None) -> dict:
    """Keyword arguments of `AntiMemorizationGuidance`.

    Args:
        name: one of PRESETS.
        bank: training pictures with captions.
        similarity: σ_t; SSCD from its published file in the working directory where None.
    Raises:
        ValueError: for an unknown name, or where SSCD's file is not the published one.
        FileNotFoundError: where SSCD's file is not there; it says how to fetch it.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; choose among {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    similarity = SSCD(bank, size=SIZE, sha256=SHA256) if similarity is None else similarity
    return {"similarity": similarity} | {field: getattr(chosen, field) for field in ("c1", "c2", "c3", "threshold")}
