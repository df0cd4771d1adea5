"""Five comparators of measured values: each is True or False beyond chance, and None if the samples are too few."""

from __future__ import annotations

from amg.metrics.values import Mean, Share


def none_left(copies: Share) -> bool:
    """Whether no sample was counted."""
    return copies.count == 0


def fewer(after: Share, before: Share) -> bool | None:
    """Whether a share fell: no if it did not, yes if the interval of the difference excludes 0, else None."""
    change = after - before
    return False if change.value >= 0 else True if change.high < 0 else None


def at_most(value: Mean, bound: float) -> bool | None:
    """Whether the interval of a mean lies below a bound as a whole; no if it lies above as a whole, else None."""
    half = value.half_width or 0.0
    return True if value.mean + half <= bound else False if value.mean - half > bound else None


def at_least(value: Mean, bound: float) -> bool | None:
    """Whether the interval of a mean lies above a bound as a whole; no if it lies below as a whole, else None."""
    return at_most(value._replace(mean=-value.mean), -bound)


def as_good_as(rival: tuple[Share, Mean], other: tuple[Share, Mean]) -> bool | None:
    """Whether a rival has no more copies and no less alignment; no if one is worse beyond chance, else None.

    Args:
        rival, other: share of copies and change of alignment.
    """
    (copies, change), (few, kept) = rival, other
    apart = ((change.half_width or 0.0) ** 2 + (kept.half_width or 0.0) ** 2) ** 0.5
    if fewer(few, copies) or change.mean + apart < kept.mean:
        return False
    return True if (few - copies).value >= 0 and change.mean >= kept.mean else None
