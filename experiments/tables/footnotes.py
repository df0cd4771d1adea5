"""What a table says of itself below its rows: thresholds, preprocessing, how its Fréchet distances were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.tables.cells import SIMILARITIES

if TYPE_CHECKING:
    from experiments.tables.table import TableSpec


def own_notes(spec: TableSpec, results: Mapping[str, Any]) -> list[str]:
    """What every table owes its reader: who counted beyond what, what intervals are, whose FID it is."""
    ran = {row.label: results[row.row] for row in spec.rows if isinstance(results.get(row.row), Mapping)}
    told = [note for one in ran.values() for note in (*_thresholds(one), *one.get("notes", ()))]
    notes = [note for note in dict.fromkeys(told) if note not in spec.notes]
    if ran and any(column.format == "share" for column in spec.columns):
        notes.append("Shares: count/n with Wilson's 95 % interval.")
    groups = sorted({metrics.get("groups", 1) for metrics in ran.values()})
    if groups and groups != [1]:
        notes.append(
            f"Over {' or '.join(map(str, groups))} groups of seeds: ± is the 95 % interval of the mean (Student's t "
            "over the groups; none for one group); shares are counted over all samples, which are independent."
        )
    if spec.distance and any(column.key in SIMILARITIES for column in spec.columns):
        notes.append("Top5 % and Top1 are nL2 distances (Eq. 8): larger is farther from the training set.")
    if any(column.key.startswith("alignment") for column in spec.columns):
        by = dict.fromkeys(metrics["alignment_by"] for metrics in ran.values() if metrics.get("alignment_by"))
        notes += [f"Alignment: 100 · cosine of picture and prompt, by {name}." for name in by]
    by_setting: dict[str, list[str]] = {}
    if any(column.key == "fid" for column in spec.columns):
        for label, metrics in ran.items():
            if setting := metrics.get("fid_setting"):
                by_setting.setdefault(_fid_setting(setting), []).append(label)
    for setting, labels in by_setting.items():
        which = "" if len(by_setting) == 1 else f" of {', '.join(labels)}"
        notes.append(f"FID{which}: {setting}.")
    return notes


def _thresholds(metrics: Mapping[str, Any]) -> list[str]:
    line = metrics.get("thresholds")
    return [f"{line[0].upper()}{line[1:]}."] if line else []


def _fid_setting(setting: Mapping[str, Any]) -> str:
    parts = [f"n = {setting['n']}"]
    return ", ".join(parts + [f"{name} {setting[name]}" for name in ("extractor", "reference", "resize")])
