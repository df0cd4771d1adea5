"""What detectors are worth: AUC, TPR at 1 % FPR and price, for each notion of "memorized"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from amg.detectors import Detector, network_calls
from amg.metrics.detection import auc, auc_interval, positives_at
from experiments.build import Parts, told
from experiments.schema import ConfigError, RunConfig
from experiments.tables import NOT_APPLICABLE, Table, render

if TYPE_CHECKING:
    import pandas as pd

RATE = 0.01
ONE_IMAGE = "Is the prompt planted? One image"
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


def compare(run: RunConfig, detectors: Mapping[str, Detector], scores: pd.DataFrame) -> list[Section]:
    """The parts of the table: planted prompts by one image, by the mean of several, and samples that are copies.

    Raises:
        ConfigError: where no part has both memorized and ordinary samples.
    """
    sections = []
    for roc, images, groups in _truths(scores):
        memorized = torch.tensor(roc.decisions["memorized"].to_numpy(bool))
        if memorized.all() or not memorized.any():
            continue
        independent = [len(set(groups[roc.decisions["memorized"] == kind])) for kind in (True, False)]
        metrics = {}
        for name, detector in detectors.items():
            values = torch.tensor(roc.decisions[f"score_{name}"].to_numpy(float))
            with told(f"detector.{name}"):
                area = auc(values, memorized)
            low, high = auc_interval(area, *independent)
            calls = network_calls(detector, run.sampler.steps, None if run.conditioning == "none" else run.s0)
            metrics[name] = {
                "auc": area,
                "auc_low": low,
                "auc_high": high,
                "tpr": positives_at(values, memorized, RATE),
                "tpr_n": int(memorized.sum()),
                "calls": calls * images,
                "seconds": float(scores[f"seconds_{name}"].mean()) * images,
            }
        sections.append(Section(roc.title, roc, metrics, int((~memorized).sum())))
    if not sections:
        raise ConfigError(
            [f"n_samples={run.n_samples}: every prompt and every sample is of one kind, so nothing can be told apart; "
             "draw more, from planted and ordinary prompts"]
        )  # fmt: skip
    return sections


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
    run: RunConfig,
    sections: list[Section],
    reasons: Mapping[str, str],
    published: Mapping[str, Mapping[str, float]],
    notes: list[str],
) -> Table:
    """One table, a part per notion of memorized; papers' numbers stand where they belong."""
    tables = []
    for section in sections:
        paper = published if section.title == ONE_IMAGE else {}
        rows = [{"row": name, "label": name, "paper": paper.get(name, {})} for name in run.detector]
        spec = {"title": f"Detectors, {run.model.get('name')}", "rows": rows, "columns": COLUMNS}
        tables.append(render(spec, section.metrics | dict.fromkeys(reasons, NOT_APPLICABLE)))
    lines = [
        replace(line, section=section.title)
        for section, table in zip(sections, tables, strict=True)
        for line in table.lines
    ]
    rests = "; ".join(f"{int(RATE * s.ordinary)} of {s.ordinary} ({s.title})" for s in sections)
    own = [
        f"TPR at 1 % FPR rests on so few ordinary ones above the threshold: {rests}.",
        *(f"n/a: {reason}." for reason in reasons.values()),
    ]
    if any(line.source == "paper" for line in lines):
        own.append("Paper rows: Stable Diffusion v1.4, 500 memorized against 500 ordinary prompts, one image.")
    return Table(tables[0].title, tables[0].head, tuple(lines), (*own, *notes, *tables[0].notes))


def notes(
    run: RunConfig, parts: Parts, detectors: Mapping[str, Detector], scores: pd.DataFrame, learned: int
) -> list[str]:
    """What one must know to believe the numbers."""
    known = hasattr(parts.model, "responsible")
    by = "a planted picture is responsible (the truth)" if known else f"the judge, {run.judge.get('name')}, says so"
    found = [
        "AUC: interval by Hanley & McNeil's variance at the bound"
        + (", every prompt counted once: its images are no independent witnesses." if scores["cause"].any() else "."),
        f"Copies: {int(scores['copy'].sum())} of {len(scores)} samples; {by}.",
        f"Network calls per decision, two under classifier-free guidance; seconds on {parts.model.device}, "
        f"batches of {min(run.batch_size, len(scores))}.",
    ]
    learners = ", ".join(name for name, detector in detectors.items() if detector.learns)
    if learners:
        found.append(f"{learners}: learned on {learned} ordinary chains of other seeds, none of them a copy.")
    return found
