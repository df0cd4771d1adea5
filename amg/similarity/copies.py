"""Finished images held against the training set: which of them are copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from amg.bank.images import decode
from amg.similarity.base import Match, Similarity, exactly, measure

BATCH = 64
Images = Tensor | np.ndarray | Sequence[Image.Image | str | Path]
"""Tensor (B, 3, H, W) in [−1, 1]; array (B, H, W, 3) in [0, 1]; images of Pillow; or files of images."""


@dataclass(frozen=True)
class SampleReport:
    """Findings on one finished image."""

    similarity: float
    """To its nearest training image, by the guide; NaN if the image is not finite."""
    nearest: int
    """Index of that image in the bank."""
    caption: str
    """Its most frequent caption, "" if it has none."""
    copy: bool
    """True if the guide or the judge is beyond its threshold."""
    judge: float | None = None
    """Similarity by the judge; None without one."""
    steps_guided: int | None = None
    """Steps on which the sample was guided; None if the guidance does not say."""
    tries: int = 0
    """Times that the sample was drawn again."""
    refused: bool = False
    """True if a black image took its place."""


@torch.no_grad()
def find_copies(
    images: Images,
    bank: Any,
    similarity: Similarity,
    threshold: float | None = None,
    *,
    judge: Similarity | None = None,
    judge_threshold: float | None = None,
    mirrored: bool = False,
) -> list[SampleReport]:
    """Compares images from anywhere with the training images; one report per image.

    Args:
        images: see `Images`. Files and images of Pillow are resized to the bank's size, as the bank's own were.
        bank: the training images; None where the similarity knows them by itself, without captions then.
        similarity: the guide, made for this bank.
        threshold: an image is a copy if its similarity exceeds it; the similarity's own `copy` where None.
        judge, judge_threshold: another similarity that may call an image a copy, and its threshold.
        mirrored: compares the mirror image of each too, and reports the more similar one.
    Raises:
        ValueError: for a similarity without a copy threshold, or a file that cannot be read, by name.
    """
    threshold = copy_threshold(similarity, "threshold") if threshold is None else threshold
    if judge is not None:
        judge_threshold = copy_threshold(judge, "judge_threshold") if judge_threshold is None else judge_threshold
    captions = getattr(bank, "captions", None)
    found, batch = [], BATCH if isinstance(images, (Tensor, np.ndarray)) or _size(bank) else 1
    for start in range(0, len(images), batch):
        part = as_tensor(images[start : start + batch], bank)
        match = _measured(similarity, part, mirrored)
        judged = [None] * len(part) if judge is None else _measured(judge, part, mirrored).value.tolist()
        for value, index, other in zip(match.value.tolist(), match.index.tolist(), judged, strict=True):
            copy = value > threshold or (other is not None and other > judge_threshold)
            found.append(SampleReport(value, index, (captions[index] if captions else "") or "", copy, other))
    return found


def copy_threshold(similarity: Any, key: str = "threshold") -> float:
    """Returns the similarity beyond which an image counts as a copy.

    Raises:
        ValueError: where the similarity does not say.
    """
    found = getattr(similarity, "copy", None)
    if not isinstance(found, (int, float)):
        name = getattr(similarity, "__name__", type(similarity).__name__)
        raise ValueError(f"similarity {name} has no copy threshold: give {key}=, or set its `copy`")
    return float(found)


def as_tensor(images: Images, bank: Any = None) -> Tensor:
    """Images as a tensor (B, 3, H, W) in [−1, 1].

    Args:
        bank: files and images of Pillow are resized to the size of its images; None keeps their own.
    Raises:
        ValueError: for a file that cannot be read, by name.
    """
    if isinstance(images, Tensor):
        return images.detach().float().clamp(-1, 1)
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
    decoded, size = [], _size(bank)
    for image in images:
        try:
            decoded.append(decode(Path(image) if isinstance(image, str) else image, size))
        except ValueError as error:
            raise ValueError(f"{image}: no image that can be read ({error})") from None
    return torch.stack(decoded)


def _size(bank: Any) -> tuple[int, int] | None:
    """Height and width of all images of a bank; None without a bank, or where they differ."""
    try:
        return None if bank is None else tuple(bank.shape[1:])
    except ValueError:
        return None


def _measured(similarity: Similarity, images: Tensor, mirrored: bool) -> Match:
    def exact(some: Tensor) -> Match:
        return exactly(similarity, some)

    match = measure(exact, images)
    return more_alike(match, measure(exact, images.flip(3))) if mirrored else match


def more_alike(first: Match, second: Match) -> Match:
    """The better match of two for each image."""
    more = second.value > first.value
    return Match(second.value.where(more, first.value), second.index.where(more, first.index))


def derived_seed(seed: int, k: int) -> int:
    """Returns the seed of try k of a seed, in [0, 2⁶³); try 0 is the seed itself."""
    if k == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {k}".encode(), digest_size=8).digest(), "big") >> 1


class CopyChecker(nn.Module):
    """Blackens copies where diffusers calls a `safety_checker`.

        checker = CopyChecker(bank, similarity)
        pipe.safety_checker, pipe.feature_extractor = checker, checker.feature_extractor

    Args:
        bank, similarity, threshold, judge, judge_threshold: as `find_copies`'.

    `report` holds the reports of the last call.
    """

    def __init__(
        self,
        bank: Any,
        similarity: Similarity,
        threshold: float | None = None,
        judge: Similarity | None = None,
        judge_threshold: float | None = None,
    ):
        super().__init__()
        copy_threshold(similarity) if threshold is None else None
        self.register_buffer("_place", torch.zeros(1), persistent=False)
        self._compared = (bank, similarity, threshold), {"judge": judge, "judge_threshold": judge_threshold}
        self.report: list[SampleReport] = []

    def forward(self, images: Any, clip_input: Any = None) -> tuple[Any, list[bool]]:
        """Returns the images, copies black, and which of them were.

        Args:
            images: tensor (B, 3, H, W) in [−1, 1] or array (B, H, W, 3) in [0, 1], as diffusers passes them. Black is
                0 in both, since diffusers leaves the range of flagged images alone.
            clip_input: what the feature extractor made; unused.
        """
        given, options = self._compared
        self.report = find_copies(images, *given, **options)
        flags = [report.copy for report in self.report]
        images = images.clone() if isinstance(images, Tensor) else images.copy()
        for i, flagged in enumerate(flags):
            if flagged:
                images[i] = 0
        return images, flags

    @property
    def device(self) -> torch.device:
        """Device that the pipeline moved it to; the pipeline asks its components."""
        return self._place.device

    @property
    def dtype(self) -> torch.dtype:
        return self._place.dtype

    @staticmethod
    def feature_extractor(images: Any, return_tensors: str | None = None) -> Any:
        """Stands for the extractor that a pipeline calls before its checker; returns nothing of use."""
        from transformers import BatchFeature

        return BatchFeature({"pixel_values": torch.zeros(len(images), 1)})
