"""Methods that keep a diffusion model from copying its training images; one file each."""

from amg.guidance.anti_memorization import AntiMemorizationGuidance, State
from amg.guidance.base import Chain, Guidance
from amg.guidance.looks import Looks
from amg.guidance.terms import deduplication_scale, despecification_scale, dissimilarity
from amg.guidance.watch import Sight, Watch

__all__ = [
    "AntiMemorizationGuidance",
    "Chain",
    "Guidance",
    "Looks",
    "Sight",
    "State",
    "Watch",
    "deduplication_scale",
    "despecification_scale",
    "dissimilarity",
]
