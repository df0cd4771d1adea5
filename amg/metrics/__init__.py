"""Numbers of the paper's tables as torchmetrics; each one's arithmetic is a pure function beside it."""

from amg.metrics.alignment import AlignmentScore, alignment
from amg.metrics.counts import MemorizedShare, Top1, Top5, TopSimilarity, share, top
from amg.metrics.extractors import features_of, features_of_files
from amg.metrics.frechet import FrechetDistance, frechet_between, frechet_distance, matched_distance, moments

__all__ = [
    "AlignmentScore",
    "FrechetDistance",
    "MemorizedShare",
    "Top1",
    "Top5",
    "TopSimilarity",
    "alignment",
    "features_of",
    "features_of_files",
    "frechet_between",
    "frechet_distance",
    "matched_distance",
    "moments",
    "share",
    "top",
]
