"""The reference that needs the training set: how alike is the finished image to its nearest training image?"""

from __future__ import annotations

from torch import Tensor

from amg.detectors.base import Detector
from amg.similarity.base import Similarity, measure
from amg.step import Step


class NearestPicture(Detector):
    """σ of the finished, unguided image (Eqs. 8 and 9; Carlini et al., 2023; Somepalli et al., 2023).

    Args:
        similarity: see `amg.similarity`; it brings the training images.
    """

    chain = slice(-1, None)

    def __init__(self, similarity: Similarity):
        self.similarity = similarity

    def see(self, step: Step, after: Tensor) -> Tensor:
        return measure(self.similarity, step.decode(after).clamp(-1, 1)).value[:, None]

    def score(self, seen: Tensor) -> Tensor:
        return seen[:, 0, 0]
