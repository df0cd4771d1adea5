"""The paper's claims, held against what a sweep measured: one entry per claim that its rows can decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from amg.metrics.values import Bounds, Mean, Share, number, percent
from experiments.tables.names import guidance_of


def none_left(copies: Share) -> bool:
    """Tells whether no sample was counted."""
    return copies.count == 0


def fewer(after: Share, before: Share) -> bool | None:
    """Tells whether a share fell: no if it did not, yes if the interval of the difference excludes 0, else None."""
    change = after - before
    return False if change.value >= 0 else True if change.high < 0 else None


def at_most(value: Mean, bound: float) -> bool | None:
    """Tells whether the interval of a mean lies below a bound as a whole; no if it lies above as a whole, else None."""
    half = value.half_width or 0.0
    return True if value.mean + half <= bound else False if value.mean - half > bound else None


def at_least(value: Mean, bound: float) -> bool | None:
    """Tells whether the interval of a mean lies above a bound as a whole; no if it lies below as a whole, else None."""
    return at_most(value._replace(mean=-value.mean), -bound)


def as_good_as(rival: tuple[Share, Mean], other: tuple[Share, Mean]) -> bool | None:
    """Tells whether a rival has no more copies and no less alignment; no if one is worse beyond chance, else None.

    Args:
        rival, other: share of copies and change of alignment.
    """
    (copies, change), (few, kept) = rival, other
    apart = ((change.half_width or 0.0) ** 2 + (kept.half_width or 0.0) ** 2) ** 0.5
    if fewer(few, copies) or change.mean + apart < kept.mean:
        return False
    return True if (few - copies).value >= 0 and change.mean >= kept.mean else None


Metrics = Mapping[str, Any]
BY = {
    "truth_copies": "truth",
    "planted_copies": "judge, of planted images",
    "judge_copies": "judge",
    "copies": "guide",
}
"""Counts of copies, the most trusted first."""
KIN = ("spell", "safe_denoiser", "sgf", "procreate")
RIVALS = ("gni", "rt", "cwr", "rna", "wen", "ren", "stp", "dtp", "og", "han_batch", "broken_memories", *KIN)
"""Rows that are no form of AMG."""
WITHOUT_SIM = {"spe_dup": "G_spe + G_dup", "spe": "G_spe alone", "dup": "G_dup alone"}
CHANGING = ("sim_parabolic", "sim_calibrated")
"""Rows of Table 5 that differ from `sim_constant` in λ_t alone."""
MARGIN = 0.10
"""Factor by which the judge's count may exceed its false positives, at the upper end of the interval."""
KEPT = 1.03
"""Quality is kept where the Fréchet distance is at most this multiple of that of as many unguided non-copies."""
RUINED = 1.5
"""Quality is ruined beyond this multiple; the paper's Table 5 has 35."""
LOST = 0.05
"""Share of the unguided alignment that may go; in the paper's Table 1 AMG loses 0.04, RT 0.19."""
TOO_FEW = "too few samples to tell"
NOTHING = "no copy without guidance, so nothing to remove"


class Answer(NamedTuple):
    """`holds` is None if nothing was measured that decides; the numbers say why."""

    holds: bool | None
    numbers: Sequence[str]


def claims(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns {"claim", "verdict", "numbers"} each; verdict: "holds", "does not hold", or "not measured".

    Args:
        metrics: by row, as for `experiments.tables.table.render`.
    """
    entries = []
    settings: dict[str, dict[str, Metrics]] = {}
    for key, row in metrics.items():
        if isinstance(row, Mapping):
            guidance, setting = guidance_of(key)
            settings.setdefault(setting, {})[guidance] = row
    for setting, rows in settings.items():
        for text, required, ask in TABLE:
            # of several alternatives the first that was run
            names = [next((name for name in _several(some) if name in rows), None) for some in required]
            if None in names or (answer := ask(rows, *names)) is None:
                continue
            verdict = "not measured" if answer.holds is None else "holds" if answer.holds else "does not hold"
            claim = text.format(where=_where(rows[names[0]])) + (f" ({setting})" if setting else "")
            entries.append({"claim": claim, "verdict": verdict, "numbers": "; ".join(filter(None, answer.numbers))})
    return entries


def clears(rows: Mapping[str, Metrics], none: str, full: str) -> Answer:
    """AMG leaves no copy by the guide's count, nor by the truth; if that is unknown, by the judge."""
    before, after = rows[none], rows[full]
    keys = [key for key in BY if _counted(key, before, after)]
    holds: bool | None = all(none_left(after[key]) for key in keys if key != "judge_copies")
    if holds and "truth_copies" not in keys and "judge_copies" in keys and not none_left(after["judge_copies"]):
        holds = _no_more_than_false_alarms(before, after)  # the guide's own 0 is no proof
    return _removal(before[_trusted(before, after)], holds, *(_by(key, before, after) for key in keys))


def clears_strictly(rows: Mapping[str, Metrics], none: str, strong: str) -> Answer:
    """Strong leaves none beyond the stricter threshold either."""
    before, after = rows[none]["strict"], rows[strong]["strict"]
    return _removal(before, none_left(after), f"by the guide {_told(before, after)}")


def needs_sim(rows: Mapping[str, Metrics], none: str, without: str) -> Answer:
    """Without G_sim copies remain, more than with it."""
    before, after, full = rows[none], rows[without], rows.get("full")
    key = _trusted(before, after, *([full] if full else []))
    numbers = [f"{_by(key, before, after)} with {WITHOUT_SIM[without]}", f"{full[key]} with all three" if full else ""]
    return _removal(before[key], not none_left(after[key]), *numbers)


def answers(cause: str, rows: Mapping[str, Metrics], none: str, name: str) -> Answer | None:
    """A guidance alone removes copies of its own cause; the change of the others is reported."""
    before, after = (rows[row].get("by_cause") or {} for row in (none, name))
    key = next((key for key in BY if _counted(key, before.get(cause, {}), after.get(cause, {}))), None)
    if key is None:
        return None
    both = [one for one in before if one in after and _counted(key, before[one], after[one])]
    changes = {one: after[one][key] - before[one][key] for one in both}
    others = [f"{one} {_points(change)}" for one, change in changes.items() if one not in (cause, "ordinary")]
    holds = fewer(after[cause][key], before[cause][key])
    numbers = [_by(key, before[cause], after[cause]), _points(changes[cause]), *others]
    return _removal(before[cause][key], holds, *numbers, TOO_FEW if holds is None else "")


def needs_less(rows: Mapping[str, Metrics], constant: str, name: str) -> Answer:
    """A λ_t that changes with t needs less than a constant one: that leaves more copies, or as many for more guiding.

    The rows have the same terms and constants; λ_t alone differs.
    """
    fixed, changing = rows[constant], rows[name]
    key, steps = _trusted(fixed, changing), [number(row.get("steps_guided")) for row in (fixed, changing)]
    change = fixed[key] - changing[key]
    numbers = [f"copies by the {BY[key]}: constant {fixed[key]}, {name} {changing[key]}", _points(change)]
    if None not in steps:
        numbers.append(f"steps guided: constant {percent(steps[0])} %, {name} {percent(steps[1])} %")
    holds = True if change.low > 0 else False if change.high < 0 else None
    if holds is None and None not in steps:
        holds = steps[0] > steps[1]
        numbers.append("copies do not differ beyond chance, so the steps decide")
    return Answer(holds, numbers)


def ruins(rows: Mapping[str, Metrics], always: str) -> Answer:
    """Guiding every step of every trajectory ruins the images."""
    others = (always, "sim_constant", *CHANGING, "full")
    ratios = {name: rows[name].get("matched_ratio") for name in others if name in rows}
    ratio = ratios.pop(always)
    if ratio is None:
        return Answer(None, ["no Fréchet distance against unguided images"])
    numbers = [f"Fréchet distance {_spread(ratio, 2)} times that of unguided images (ruined: over {RUINED:g})"]
    numbers += [f"{name} {_spread(other, 2)}" for name, other in ratios.items() if other]
    holds = at_least(ratio, RUINED)
    return Answer(holds, [*numbers, TOO_FEW if holds is None else ""])


def trade(rows: Mapping[str, Metrics], none: str, _: str) -> Answer | None:
    """Each rival that removes copies loses text alignment, over all prompts and the same seeds."""
    rivals = _rivals(rows)
    if not rivals:
        return None
    key = _trusted(rows[none], *rivals.values())
    private = {name: row for name, row in rivals.items() if fewer(row[key], rows[none][key])}
    free = [name for name, row in private.items() if at_least(row["alignment_change"], 0) is not False]
    idle = [name for name in rivals if name not in private]
    numbers = [f"copies by the {BY[key]} and change of alignment: none {_of(rows[none][key])}"]
    numbers += [_described(name, row, key) for name, row in private.items()]
    numbers += [f"paying nothing beyond chance: {', '.join(free)}"] if free else []
    numbers += [f"removing none beyond chance: {', '.join(idle)}"] if idle else []
    return Answer(not free if private else None, numbers)


def beats(rows: Mapping[str, Metrics], _: str, full: str, __: str) -> Answer | None:
    """No rival leaves as few copies as AMG at its text alignment."""
    rivals, amg = _rivals(rows), rows[full]
    if not rivals or not amg.get("alignment_change"):
        return None
    key = _trusted(amg, *rivals.values())
    both = amg[key], amg["alignment_change"]
    good = {name: as_good_as((row[key], row["alignment_change"]), both) for name, row in rivals.items()}
    equals, unclear = ([name for name, verdict in good.items() if verdict is kind] for kind in (True, None))
    numbers = [f"by the {BY[key]} {_described('AMG', amg, key)}"]
    numbers += [f"no worse: {', '.join(_described(name, rivals[name], key) for name in equals)}"] if equals else []
    numbers += [f"{TOO_FEW}: {', '.join(unclear)}"] if unclear else []
    return Answer(False if equals else None if unclear else True, numbers)


def judged(rows: Mapping[str, Metrics], none: str, full: str) -> Answer | None:
    """A judge that did not guide counts on AMG's images no more than its false alarms on unguided, uncopied ones."""
    before, after = rows[none], rows[full]
    if not _counted("judge_copies", after) or not _counted("judge_novel", before):
        return None
    holds = _no_more_than_false_alarms(before, after)
    numbers = [_by(key, before, after) for key in reversed(BY) if _counted(key, before, after)]
    numbers += [
        f"the judge's false alarms on unguided images that are no copies {before['judge_novel']}",
        f"beyond them {_points(after['judge_copies'] - before['judge_novel'])}",
    ]
    return _removal(before["copies"], holds, *numbers, TOO_FEW if holds is None else "")


def keeps_quality(rows: Mapping[str, Metrics], full: str) -> Answer | None:
    """AMG's images are as near to the training set's distribution as unguided ones that are no copies."""
    ratio = rows[full].get("matched_ratio")
    if ratio is None:
        return None
    holds = at_most(ratio, KEPT)
    return Answer(holds, [f"{full}: {_spread(ratio, 3)}", TOO_FEW if holds is None else ""])


def keeps_alignment(kind: str, rows: Mapping[str, Metrics], none: str, full: str) -> Answer | None:
    """AMG loses no more than 5 % of the unguided text alignment: same seeds compared."""
    before, after = rows[none], rows[full]
    change = after.get(f"alignment_change{kind}")
    apart = any(after.get(f"alignment_change_{other}") for other in ("ordinary", "planted"))
    if change is None or (not kind and apart):
        return None
    unguided, guided = (number(row[f"alignment{kind}"]) for row in (before, after))
    holds = at_least(change, -LOST * abs(unguided))
    numbers = [f"{unguided:.1f} → {guided:.1f}, {_spread(change, 2, signed=True)}"]
    if _counted(f"aligned{kind}", before, after):
        numbers.append(f"answered {_told(before[f'aligned{kind}'], after[f'aligned{kind}'])}")
    return Answer(holds, [*numbers, TOO_FEW if holds is None else ""])


KEEPS = "AMG keeps text alignment on {} (within 5 % of unguided)"
UNDOES = "AMG undoes copies{where} and does not only fool the descriptor that guides it"
QUALITY = "AMG keeps image quality (Fréchet distance within 3 % of that of unguided images that are no copies)"
LESS = "A {} λ_t needs less guiding than a constant λ, or leaves fewer copies"
Row = str | Sequence[str]
TABLE: tuple[tuple[str, Sequence[Row], Callable[..., Answer | None]], ...] = (
    ("AMG clears all copies{where}", ("none", "full"), clears),
    ("AMG (Strong) clears the stricter threshold too", ("none", "strong"), clears_strictly),
    ("Without G_sim some copies remain", ("none", tuple(WITHOUT_SIM)), needs_sim),
    ("G_spe answers its cause: specific prompt", ("none", "spe"), partial(answers, "specific prompt")),
    ("G_dup answers its cause: duplicated caption", ("none", "dup"), partial(answers, "duplicated caption")),
    ("G_sim answers its cause: duplicated image", ("none", "sim"), partial(answers, "duplicated image")),
    *((LESS.format(name.removeprefix("sim_")), ("sim_constant", name), needs_less) for name in CHANGING),
    ("Always-on guidance ruins image quality", ("sim_always",), ruins),
    ("Rivals trade text alignment for privacy", ("none", RIVALS), trade),
    ("No rival leaves as few copies as AMG at AMG's text alignment", ("none", "full", RIVALS), beats),
    (UNDOES, ("none", "full"), judged),
    (QUALITY, ("full",), keeps_quality),
    (KEEPS.format("ordinary captions"), ("none", "full"), partial(keeps_alignment, "_ordinary")),
    (KEEPS.format("captions of memorized images"), ("none", "full"), partial(keeps_alignment, "_planted")),
    (KEEPS.format("all captions"), ("none", "full"), partial(keeps_alignment, "")),
)
"""In the paper's order: the claim, the rows that it needs (of several names the first that ran), what decides it."""


def _removal(before: Share, holds: bool | None, *numbers: str) -> Answer:
    """The answer of a claim about removing copies: undecided if there was none without guidance."""
    if before.count:
        return Answer(holds, numbers)
    return Answer(None, [*(text for text in numbers if text != TOO_FEW), NOTHING])


def _no_more_than_false_alarms(before: Metrics, after: Metrics) -> bool | None:
    """Tells whether the judge counts no more on guided images than on unguided ones that are no copies."""
    if not _counted("judge_novel", before):
        return None
    change = after["judge_copies"] - before["judge_novel"]
    return False if change.low > 0 else True if change.high <= MARGIN else None


def _counted(key: str, *rows: Metrics) -> bool:
    return all(isinstance(row.get(key), Share) and row[key].n > 0 for row in rows)


def _trusted(*rows: Metrics) -> str:
    """The most trusted count of copies that all rows have."""
    return next(key for key in BY if key == "copies" or _counted(key, *rows))


def _rivals(rows: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The rivals whose alignment was compared with that of unguided samples."""
    return {name: rows[name] for name in RIVALS if name in rows and rows[name].get("alignment_change")}


def _several(names: Row) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _where(row: Metrics) -> str:
    return " under captions" if row.get("by_cause") or row.get("alignment") else ""


def _by(key: str, before: Metrics, after: Metrics) -> str:
    return f"by the {BY[key]} {_told(before[key], after[key])}"


def _told(before: Share, after: Share) -> str:
    """
    >>> _told(Share(70, 144), Share(0, 144))
    '70/144 → 0/144 (0–2.6 %)'
    """
    return f"{_of(before)} → {after}"


def _of(share: Share) -> str:
    return f"{share.count}/{share.n}"


def _points(change: Bounds) -> str:
    """A difference of shares in percentage points."""
    middle, low, high = (_signed(100 * value, 1) for value in change)
    return f"{middle} points ({low} to {high})"


def _described(name: str, row: Metrics, key: str) -> str:
    return f"{name} {_of(row[key])}, {_spread(row['alignment_change'], 1, signed=True)}"


def _spread(mean: Mean, digits: int, signed: bool = False) -> str:
    middle = _signed(mean.mean, digits) if signed else f"{mean.mean:.{digits}f}"
    return f"{middle} ± {mean.half_width or 0.0:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    """
    >>> _signed(-1.25, 1), _signed(0.5, 2)
    ('−1.2', '+0.50')
    """
    return f"{value:+.{digits}f}".replace("-", "−")
