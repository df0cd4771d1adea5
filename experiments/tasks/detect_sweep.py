"""A sweep of `task=detect` as one table: a row per detector and setting, ranges of seeds scored together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.page import write_report
from experiments.report.present import job_name, show
from experiments.run.folder import Manifest, configuration
from experiments.tables.rows import keys
from experiments.tables.seeds import refuse_overlap
from experiments.tables.table import NOT_APPLICABLE
from experiments.tasks.detect_table import CAPTION, Section, compare, counted, refuse_one_kind, table_of
from experiments.tasks.figure_roc import figure_roc

if TYPE_CHECKING:
    import pandas as pd

POOLED = "Several ranges of seeds of one setting: the scores of all their samples together."


@dataclass(frozen=True)
class Group:
    """Finished jobs of one setting with the same detectors: they differ in their seeds alone."""

    setting: str
    labels: Mapping[str, str]
    """The row of each detector that could serve."""
    scores: pd.DataFrame
    notes: list[str]


def present_sweep(results: Sequence[Mapping[str, Any]], command: str = "") -> Path:
    """Table, ROC figures and report over all jobs of a sweep; returns their folder.

    Args:
        results: what each job left, "key" among it.
        command: what was typed.
    """
    place = Path("runs") / results[0]["name"]
    settings = _settings(results)
    groups = list(_groups(results, settings))
    sections, figures, said = _measured(groups, place / "figures")
    measured = {label for section in sections for label in section.metrics}
    rows: dict[str, set[str]] = {}
    for result, setting in zip(results, settings, strict=True):
        for name in result["detector"]:
            rows.setdefault(_label(name, setting, settings), set()).add(result["status"])
    unmeasured = {
        label: NOT_APPLICABLE if statuses <= {"done", "n/a"} else None
        for label, statuses in rows.items()
        if label not in measured
    }
    runs = {job_name(result, results): Path(result["run_dir"]) for result in results if result["run_dir"]}
    configs = [configuration(run_dir) for run_dir in runs.values()]
    title = f"Detectors, {', '.join(dict.fromkeys(run.model.get('name') for run in configs))}"
    published = configs[0].task.get("published") or {}
    table = table_of(title, list(rows), sections, unmeasured, published, said)
    table.write(place)
    show(table)
    report = write_report(place, tables=[table], figures=figures, runs=runs, title=title, command=command)
    print(f"table, figures and report: {report}")
    return place


def _settings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each job was swept over, its detectors and seeds aside."""
    return keys([
        {**result, "overrides": [word for word in result["overrides"] if not word.startswith("detector=")]}
        for result in results
    ])  # fmt: skip


def _label(name: str, setting: str, settings: Sequence[str]) -> str:
    return name if len(set(settings)) == 1 else f"{name}, {setting}"


def _groups(results: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> Iterator[Group]:
    """The finished jobs.

    Raises:
        ConfigError: where two of a group share a seed.
    """
    import pandas as pd

    found: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for result, setting in zip(results, settings, strict=True):
        if result["status"] == "done":
            found.setdefault((setting, tuple(result["detector"])), []).append(Path(result["run_dir"]))
    for (setting, detectors), folders in found.items():
        runs = {folder: configuration(folder) for folder in folders}
        refuse_overlap([(str(folder), None, range(r.seed, r.seed + r.n_samples)) for folder, r in runs.items()])
        scores = pd.concat([pd.read_parquet(folder / "scores.parquet") for folder in runs], ignore_index=True)
        labels = {name: _label(name, setting, settings) for name in detectors if f"score_{name}" in scores}
        notes = [note for folder in runs for note in Manifest(folder).read()["notes"]]
        yield Group(setting, labels, scores, notes + ([POOLED] if len(runs) > 1 else []))


def _measured(groups: Sequence[Group], folder: Path) -> tuple[list[Section], list[tuple[Path, str]], list[str]]:
    """The parts of the table over all groups, a ROC figure of each group with its caption, and notes."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Section] = {}
    figures, said = [], {}
    for i, group in enumerate(groups):
        sections = compare(group.scores)
        for note in [*counted(sections, group.scores), *group.notes]:
            said.setdefault(note, {})[group.setting] = None
        if not sections:
            continue
        figure = figure_roc([section.roc for section in sections], list(group.labels), folder / f"roc-{i + 1}.png")
        figures.append((figure, f"{', '.join(group.labels.values())}. {CAPTION}"))
        for section in sections:
            metrics = {group.labels[name]: one for name, one in section.metrics.items()}
            before = found.get(section.title, replace(section, metrics={}))
            found[section.title] = replace(before, metrics=before.metrics | metrics)
    refuse_one_kind(list(found.values()), pd.concat([group.scores for group in groups]))
    every = {group.setting for group in groups}
    notes = [note if set(some) == every else f"{'; '.join(some)}: {note}" for note, some in said.items()]
    return list(found.values()), figures, notes
