"""Methods that keep a diffusion model from copying its training pictures; one file each."""

from amg.guidance.anti_memorization import AntiMemorizationGuidance, State
from amg.guidance.base import Chain, Guidance
from amg.guidance.terms import deduplication_scale, despecification_scale, dissimilarity

__all__ = [
    "AntiMemorizationGuidance",
    "Chain",
    "Guidance",
    "State",
    "deduplication_scale",
    "despecification_scale",
    "dissimilarity",
]
