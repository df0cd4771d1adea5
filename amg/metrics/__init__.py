"""Numbers of the paper's tables: shares, means and percentiles as torchmetrics, Fréchet distances as functions."""

from amg.metrics.alignment import alignment
from amg.metrics.counts import Averaged, Counted, MemorizedShare, TopSimilarity, top
from amg.metrics.extractors import features_of, features_of_files
from amg.metrics.frechet import fid, frechet_between, frechet_distance, matched_distance, moments
from amg.metrics.values import Mean, Share

__all__ = [
    "Averaged",
    "Counted",
    "Mean",
    "MemorizedShare",
    "Share",
    "TopSimilarity",
    "alignment",
    "features_of",
    "features_of_files",
    "fid",
    "frechet_between",
    "frechet_distance",
    "matched_distance",
    "moments",
    "top",
]
