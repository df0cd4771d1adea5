"""Similarities of an image to the training images; one file each."""

from amg.similarity.base import Match, Similarity
from amg.similarity.descriptor import DescriptorSimilarity
from amg.similarity.nl2 import NormalizedL2
from amg.similarity.pca import PCASimilarity, PCAWhitening
from amg.similarity.two_stage import TwoStage

__all__ = [
    "DescriptorSimilarity",
    "Match",
    "NormalizedL2",
    "PCASimilarity",
    "PCAWhitening",
    "Similarity",
    "TwoStage",
]
