"""Numbers that carry their sample size and their 95 % interval; shares of disjoint samples add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

CONFIDENCE = 0.95
Z = 1.96
"""Half-width of a 95 % interval in standard errors of a normal distribution."""


def percent(share: float) -> str:
    """Formats a share in per cent without the sign: one decimal, more if that would print a wrong 0 or 100.

    >>> percent(0.0074), percent(0.00038), percent(0.0), percent(0.9996)
    ('0.7', '0.038', '0', '99.96')
    """
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}"
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if value >= 99.95 else f"{value:.1f}"


class Share(NamedTuple):
    """`count` of `n` independent samples.

    >>> print(Share(0, 100) + Share(0, 44))
    0/144 (0–2.6 %)
    """

    count: int
    n: int

    @property
    def value(self) -> float | None:
        """The share in [0, 1]; None of no samples."""
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, both ends in [0, 1].

        Raises:
            ValueError: unless 0 <= count <= n.
        """
        if not 0 <= self.count <= self.n:
            raise ValueError(f"a share needs 0 <= count <= n, got {self.count} of {self.n}")
        if self.n == 0:
            return 0.0, 1.0
        from scipy.stats import binomtest

        interval = binomtest(self.count, self.n).proportion_ci(CONFIDENCE, method="wilson")
        return max(0.0, float(interval.low)), min(1.0, float(interval.high))

    def __add__(self, other: Share) -> Share:  # type: ignore[override]
        """Pools the shares of two disjoint sets of samples."""
        return Share(self.count + other.count, self.n + other.n)

    def __sub__(self, other: Share) -> Bounds:
        """Subtracts the share of independent samples; 95 % interval of Newcombe (1998, method 10), made of Wilson's."""
        (p, (low_p, high_p)), (q, (low_q, high_q)) = (self.value, self.interval), (other.value, other.interval)
        low = ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5
        high = ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5
        return Bounds(p - q, p - q - low, p - q + high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.n} ({percent(low)}–{percent(high)} %)"


class Mean(NamedTuple):
    """A mean, or another estimate, from `n` samples with its standard error `se`; None if it is unknown."""

    mean: float
    n: int
    se: float | None = None
    groups: int = 1
    """Groups of seeds whose spread `se` is made of; 1 if it is made of the samples'."""

    @classmethod
    def over(cls, values: Sequence[float]) -> Mean:
        """Averages one value per group of seeds."""
        n = len(values)
        return cls(fmean(values), n, stdev(values) / n**0.5 if n > 1 else None, n)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval: Student's t over the groups, else the normal distribution's; None without `se`."""
        if self.se is None:
            return None
        if self.groups == 1:
            return Z * self.se
        from scipy.stats import t

        return float(t.ppf(0.5 + CONFIDENCE / 2, self.groups - 1)) * self.se


class Bounds(NamedTuple):
    """A number with both ends of its 95 % interval."""

    value: float
    low: float
    high: float


def number(value: Any) -> float | None:
    """The number itself, whatever else `value` says of it; None if `value` holds none or is NaN."""
    if isinstance(value, Mean):
        value = value.mean
    elif isinstance(value, (Share, Bounds)):
        value = value.value
    known = isinstance(value, (int, float)) and value == value
    return value if known else None


def plain(value: Any) -> Any:
    """Turns shares and means, nested in mappings and lists, into mappings for JSON: {"count", "n"}, {"mean", …}."""
    if isinstance(value, Mean):
        return {key: part for key, part in value._asdict().items() if key != "groups" or part > 1}
    if isinstance(value, (Share, Bounds)):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def restored(value: Any) -> Any:
    """Inverts `plain`."""
    if isinstance(value, list):
        return [restored(part) for part in value]
    if not isinstance(value, dict):
        return value
    for kind in (Share, Mean, Bounds):
        required = set(kind._fields) - set(kind._field_defaults) | ({"se"} if kind is Mean else set())
        if required <= set(value) <= set(kind._fields):
            return kind(**value)
    return {key: restored(part) for key, part in value.items()}
