"""Table of detectors: AUC, TPR at 1 % FPR and price, for each notion of "memorized", of one job or of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amg.detectors import Detector
from amg.metrics.detection import auc, auc_interval, positives_at
from amg.metrics.values import Bounds, Share
from experiments.config.build import Parts, told
from experiments.config.schema import ConfigError, RunConfig
from experiments.report.curves import figure_roc
from experiments.report.page import write_report
from experiments.report.present import job_name, show
from experiments.run.folder import Manifest, configuration
from experiments.tables.names import keys, refuse_overlap
from experiments.tables.table import NOT_APPLICABLE, Table, render

if TYPE_CHECKING:
    import pandas as pd

RATE = 0.01
ONE_IMAGE = "Is the prompt planted? One image"
CAPTION = "ROC of each detector, for each notion of memorized; dotted: 1 % false positives."
POOLED = "Several ranges of seeds of one setting: the scores of all their samples together."
COLUMNS = [
    {"key": "auc", "label": "AUC (95 %)", "format": "interval", "better": "higher"},
    {"key": "tpr", "label": "TPR at 1 % FPR", "format": "share", "better": "higher"},
    {"key": "calls", "label": "network calls", "format": ".0f", "better": "lower"},
    {"key": "seconds", "label": "seconds", "format": ".3g", "better": "lower"},
]


@dataclass(frozen=True)
class Roc:
    """One notion of "memorized": the decisions and their truth."""

    title: str
    decisions: pd.DataFrame
    """`memorized`, and a `score_<detector>` each."""


@dataclass(frozen=True)
class Section:
    title: str
    roc: Roc
    metrics: dict[str, dict[str, Any]]
    """By detector."""
    ordinary: int
    """Decisions that are no memorized ones."""


def compare(scores: pd.DataFrame) -> list[Section]:
    """The parts of the table: planted prompts by one image, by the mean of several, and samples that are copies.

    A part has both memorized and ordinary ones; there may be none.

    Args:
        scores: what `experiments.tasks.detect.scored` returned, of one run or of several with other seeds.
    """
    sections = []
    for roc, images, groups in _truths(scores):
        memorized = torch.tensor(roc.decisions["memorized"].to_numpy(bool))
        if memorized.all() or not memorized.any():
            continue
        independent = [len(set(groups[roc.decisions["memorized"] == kind])) for kind in (True, False)]
        metrics = {}
        for name in (column.removeprefix("score_") for column in scores.columns if column.startswith("score_")):
            values = torch.tensor(roc.decisions[f"score_{name}"].to_numpy(float))
            with told(f"detector.{name}"):
                area = auc(values, memorized)
            metrics[name] = {
                "auc": Bounds(area, *auc_interval(area, *independent)),
                "tpr": Share(positives_at(values, memorized, RATE), int(memorized.sum())),
                "calls": int(scores[f"calls_{name}"].iloc[0]) * images,
                "seconds": float(scores[f"seconds_{name}"].mean()) * images,
            }
        sections.append(Section(roc.title, roc, metrics, int((~memorized).sum())))
    return sections


def refuse_one_kind(sections: Sequence[Section], scores: pd.DataFrame) -> None:
    """Refuses a table without parts."""
    if not sections:
        raise ConfigError(
            [f"n_samples={len(scores)}: every prompt and every sample is of one kind, so nothing can be told apart; "
             "draw more, from planted and ordinary prompts"]
        )  # fmt: skip


def _truths(scores: pd.DataFrame):
    """(decisions with their truth, images per decision, what counts as independent) of each notion of memorized."""
    each = scores["prompt"].fillna("") if scores["cause"].any() else scores["seed"].astype(str)
    columns = [name for name in scores.columns if name.startswith("score_")]
    planted = (scores["cause"] != "ordinary").rename("memorized")
    if scores["cause"].any():
        yield Roc(ONE_IMAGE, scores[columns].assign(memorized=planted)), 1, each
        images = int(scores.groupby("prompt")["seed"].count().min())
        if images > 1:
            some = scores.assign(memorized=planted).groupby("prompt", sort=False).head(images)
            means = some.groupby("prompt", sort=False)[[*columns, "memorized"]].mean()
            means = means.astype({"memorized": bool}).reset_index()
            yield Roc(f"Is the prompt planted? Mean of {images} images", means), images, means["prompt"]
    yield Roc("Is this sample a copy?", scores[columns].assign(memorized=scores["copy"])), 1, each


def table_of(
    title: str,
    names: Sequence[str],
    sections: Sequence[Section],
    unmeasured: Mapping[str, str | None],
    published: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
) -> Table:
    """One table, a part per notion of memorized; papers' numbers stand where they belong.

    Args:
        names: of the rows, in their order; one that a part says nothing of is left out of it.
        unmeasured: rows that have no numbers in any part: "n/a", or None where the run failed.
    """
    tables = []
    for section in sections:
        paper = published if section.title == ONE_IMAGE else {}
        known = section.metrics | unmeasured
        rows = [{"row": name, "label": name, "paper": paper.get(name, {})} for name in names if name in known]
        tables.append(render({"title": title, "rows": rows, "columns": COLUMNS}, known))
    lines = [
        replace(line, section=section.title)
        for section, table in zip(sections, tables, strict=True)
        for line in table.lines
    ]
    own = ["Paper rows: Stable Diffusion v1.4, 500 memorized against 500 ordinary prompts, one image."]
    own = own if any(line.source == "paper" for line in lines) else []
    return Table(title, tables[0].head, tuple(lines), (*notes, *own, *tables[0].notes))


def counted(sections: Sequence[Section], scores: pd.DataFrame) -> list[str]:
    """Notes the counts that the numbers rest on."""
    if not sections:
        return [f"All {len(scores)} samples are of one kind: nothing can be told apart."]
    rests = "; ".join(f"{int(RATE * s.ordinary)} of {s.ordinary} ({s.title})" for s in sections)
    return [
        f"TPR at 1 % FPR rests on so few ordinary ones above the threshold: {rests}.",
        f"Copies: {int(scores['copy'].sum())} of {len(scores)} samples.",
    ]


def notes(
    run: RunConfig,
    parts: Parts,
    detectors: Mapping[str, Detector],
    reasons: Mapping[str, str],
    prompts: bool,
    learned: int,
) -> list[str]:
    """Footnotes of the table.

    Args:
        reasons: why other detectors cannot serve.
        prompts: whether samples have prompts.
        learned: ordinary trajectories that detectors learned on.
    """
    known = parts.world.truth is not None
    by = "a planted image is responsible (the truth)" if known else f"the judge, {run.judge.get('name')}, says so"
    found = [
        *(f"n/a: {reason}." for reason in reasons.values()),
        "AUC: interval by Hanley & McNeil's variance at the bound"
        + (", every prompt counted once: its images are no independent witnesses." if prompts else "."),
        f"A copy: {by}.",
        f"Network calls per decision, two under classifier-free guidance; seconds on {parts.model.device}, "
        f"batches of {min(run.batch_size, run.n_samples)}.",
    ]
    learners = ", ".join(name for name, detector in detectors.items() if detector.learns)
    if learners:
        found.append(f"{learners}: learned on {learned} ordinary trajectories of other seeds, none of them a copy.")
    return found


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
    return present_jobs(results, Path("runs") / results[0]["name"], command)


def present_jobs(results: Sequence[Mapping[str, Any]], place: Path, command: str = "") -> Path:
    """Table, ROC figures and report over jobs, a row per detector and setting, into a folder; returns it."""
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
    """Returns the keys that each job was swept over, its detectors and seeds aside."""
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
        refuse_overlap([(str(folder), None, r.seeds) for folder, r in runs.items()])
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
