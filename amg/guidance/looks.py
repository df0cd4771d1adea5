"""Rests between looks at a predicted image: their length by the sample's gap λ_t − σ_t."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SPANS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Steps from a look to the next that may be learned."""
LEFT_OUT = 40
"""Trajectories that `learn` leaves out at most."""
CLOSE = 1e-4
"""Fractions of the schedule this close are the same."""


@dataclass(frozen=True)
class Looks:
    """Rests after looks: as long as no trajectory that was learned from was flagged in after such a gap.

    `learn` makes it from unguided trajectories, `task=calibrate` writes it beside λ_t. A sample that was flagged once
    is guided, which no unguided trajectory tells of: it is looked at in every step (see `Watch`).
    """

    times: Sequence[float]
    """Increasing fractions t of the schedule at which the trajectories were looked at, T of them."""
    spans: Sequence[float]
    """Increasing lengths of a rest, S fractions of the schedule."""
    gaps: Sequence[Sequence[float]]
    """gaps[i][j]: the gap at times[i] above which a sample may rest for spans[j]; T rows of S, each ascending."""
    last: float
    """t of the last step at which a trajectory was first flagged: a rest ends there at the latest."""
    sampler: str
    """Class of the scheduler."""
    rate: float
    """Share of the copied trajectories that are flagged later than by looks at every step, as learned."""

    def __post_init__(self):
        if len(self.times) != len(self.gaps) or any(len(row) != len(self.spans) for row in self.gaps):
            raise ValueError(f"looks: gaps must have a row for each of {len(self.times)} times, of {len(self.spans)}")

    def __call__(self, t: Tensor, gap: Tensor) -> Tensor:
        """Returns the t down to which each sample rests, (B,): it is looked at again at the first step there or below.

        Args:
            t: of the look, (B,).
            gap: λ_t − σ_t, (B,); a NaN grants no rest.
        """
        times, spans, gaps = (t.new_tensor(value) for value in (self.times, (0.0, *self.spans), self.gaps))
        above = torch.searchsorted(times, t - CLOSE).clamp(max=len(times) - 1)
        below = torch.where(times[above] <= t + CLOSE, above, (above - 1).clamp(min=0))  # between knots both must grant
        granted = gap.to(t)[:, None] > torch.maximum(gaps[above], gaps[below])
        until = t - spans[granted.sum(1)]
        return torch.where(t > self.last + CLOSE, until.clamp(min=self.last), until)

    def due(self, t: Tensor, until: Tensor) -> Tensor:
        """Returns which samples are looked at in a step, (B,) bool."""
        return t <= until + CLOSE

    @classmethod
    def read(cls, path: Path) -> Looks:
        """Reads what `task=calibrate` wrote.

        Raises:
            FileNotFoundError: where nothing was learned.
        """
        learned = json.loads(path.read_text(encoding="utf8"))
        if "looks" not in learned:
            raise FileNotFoundError(f"{path} holds no looks")
        names = ("spans", "gaps", "last", "rate")
        return cls(learned["times"], sampler=learned["sampler"], **{name: learned["looks"][name] for name in names})

    def plain(self) -> dict[str, Any]:
        """Returns what a configuration holds of it."""
        return asdict(self)


def replay(looks: Looks, times: Tensor, gaps: Tensor) -> Tensor:
    """Returns at which steps trajectories would be looked at, (T, n) bool, as `Watch` looks.

    Args:
        times: t of the T steps, falling.
        gaps: λ_t − σ_t at each step, (T, n).
    """
    seen = torch.zeros_like(gaps, dtype=torch.bool)
    until = torch.ones_like(gaps[0])
    ever = seen[0].clone()
    for i, t in enumerate(times.tolist()):
        at = torch.full_like(until, t)
        seen[i] = ever | looks.due(at, until)
        ever = ever | seen[i] & (gaps[i] < 0)
        until = torch.where(seen[i], looks(at, gaps[i]), until)
    return seen


def late(looks: Looks, times: Tensor, gaps: Tensor) -> Tensor:
    """Returns which trajectories are first flagged later than by looks at every step, (n,) bool."""
    flagged = gaps < 0
    return flagged.any(0) & ~replay(looks, times, gaps).gather(0, flagged.int().argmax(0)[None])[0]


def learn(
    times: Tensor, gaps: Tensor, copied: Tensor, sampler: str, rate: float, spans: Sequence[int] = SPANS
) -> tuple[Looks, Mapping[str, Any]]:
    """Learns rests from trajectories: what half of those that are flagged show, as far as the other half allows.

    From one half: the largest gap after which a trajectory was first flagged within each span, at each time or later.
    The other half says how strictly to take it: the m largest at each place are left out, with the largest m at which
    no more than `rate` of its copied trajectories are flagged late. Where m = 0 is not strict enough, all gaps are
    enlarged, by a quarter for each step that they are held longer.

    Args:
        times: t of the T steps, falling.
        gaps: λ_t − σ_t at each step, (T, n).
        copied: whether each trajectory ends in a copy, (n,) bool.
        sampler: class of the scheduler.
        rate: share of copies that may be flagged late, in (0, 1).
        spans: steps from a look to the next one, ascending, >= 2.
    Returns:
        The rests, and how many trajectories taught them what.
    Raises:
        ValueError: for fewer than 100 copied trajectories, or none that is flagged at all.
    """
    if copied.sum() < 100:
        raise ValueError(f"looks are learned from 100 copied trajectories at least, got {int(copied.sum())}")
    flagged = gaps < 0
    first = torch.where(flagged.any(0), flagged.int().argmax(0), len(times))
    if not flagged.any():
        raise ValueError("looks: λ_t flags none of the trajectories")
    mixed = torch.randperm(gaps.shape[1], generator=torch.Generator().manual_seed(0))  # not ordinary ones apart
    shape, tried = mixed[first[mixed] < len(times)].tensor_split(2)
    steps = torch.arange(len(times))[:, None]
    ahead = first[shape] - steps  # steps until it is flagged, (T, m)
    open_gaps = torch.where(ahead > 0, gaps[:, shape], 0)
    most = min(LEFT_OUT, len(shape))
    largest = torch.stack([open_gaps.where(ahead < span, 0).topk(most, dim=1).values for span in spans], dim=1)
    largest = largest.flip(0).cummax(0).values  # (T, S, most), as t rises
    stride = (times[0] - times[-1]).item() / (len(times) - 1)
    last = times[first[first < len(times)].max()].item()

    def made(stricter: float, left_out: int) -> Looks:
        least, held = largest[..., left_out] * (1 + stricter / 4), math.ceil(stricter)
        least = torch.cat([least[held:], least[-1:].expand(held, -1)])
        rows = [[round(value, 5) for value in row] for row in least.tolist()]
        lengths = [round(span * stride, 6) for span in spans]
        return Looks([round(t, 6) for t in times.flip(0).tolist()], lengths, rows, round(last, 6), sampler, rate)

    def missed(looks: Looks) -> int:
        return int((late(looks, times, gaps[:, tried]) & copied[tried]).sum())

    count = int(copied[tried].sum())
    choices = [(tenth / 10, 0) for tenth in reversed(range(1, 5 * len(times)))] + [(0, m) for m in range(most)]
    enough = [missed(made(*choice)) <= rate * count for choice in choices]
    choice = choices[max((enough + [False]).index(False) - 1, 0)]
    looks = made(*choice)
    ordinary = ~flagged.any(0)
    share = replay(looks, times, gaps[:, ordinary]).double().mean().item() if ordinary.any() else float("nan")
    told = {
        "shown by": len(shape),
        "tried on": count,
        "late": missed(looks),
        "stricter": choice[0],
        "left out": choice[1],
        "looks unflagged": share,
    }
    return looks, told
