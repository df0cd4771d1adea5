"""`task=detect`: how well detectors tell, from unguided sampling, which prompts and samples are memorized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.config.bind import locate
from experiments.config.build import Parts, build, component, told
from experiments.config.schema import ConfigError, NotApplicable, RunConfig
from experiments.report.page import write_report
from experiments.run.folder import facts, folder, in_folder
from experiments.tables.table import NOT_APPLICABLE
from experiments.tasks.detect_scores import KIND, asked, draw_missing, labelled, samples_of, scored, seen_on_disk
from experiments.tasks.detect_sweep import present_sweep
from experiments.tasks.detect_table import CAPTION, compare, counted, notes, refuse_one_kind, table_of
from experiments.tasks.figure_roc import figure_roc

__all__ = ["detect_run", "present_sweep"]  # a sweep looks for the second where its task is

NODES = ("data", "detector", "judge", "model", "similarity")
"""Components that decide a score, besides the run-level keys that decide a sample."""


def detect_run(
    run: RunConfig,
    command: str = "",
    in_sweep: bool = False,
    ordinary: str = "ordinary_laion",
    learn: int = 64,
    published: dict[str, dict[str, float]] | None = None,
) -> Path:
    """Scores `n_samples` unguided samples by every chosen detector; returns the run's folder.

    It holds the table, the ROC figure, a report, `scores.csv` and `scores.parquet` (one row per sample), and, in
    `seen/`, all that the detectors saw: the same command again draws nothing anew. In a sweep the table, the figures
    and the report are those of all jobs (`experiments.tasks.detect_sweep`).

    Args:
        ordinary: prompts that are not memorized, what `amg.prompts.read_prompts` takes; for models that bring no
            planted prompts of their own, beside `prompts`, which then are the memorized ones.
        learn: ordinary chains, not scored, that detectors learn on.
        published: numbers of papers by detector, `auc` and `tpr` (per cent), for the first part of the table.
    """
    _check(run, learn)
    reasons = _not_applicable(run)
    parts = build(run)
    detectors = _detectors(run, parts, reasons)
    chosen, causes = labelled(run, parts.world, ordinary)
    samples = samples_of(run, chosen, causes, learn if any(d.learns for d in detectors.values()) else 0)
    run_dir = folder(run, parts, chosen, NODES, "detect")
    entries = {"command": command, **facts(run, parts, chosen)}
    with in_folder(run, run_dir, entries, NODES, KIND) as manifest:
        drawn = draw_missing(run, parts, detectors, samples, run_dir)
        frame = asked(seen_on_disk(run_dir, detectors), samples)
        scores, learned = scored(run, detectors, frame)
        scores.to_parquet(run_dir / "scores.parquet", index=False)
        scores.to_csv(run_dir / "scores.csv", index=False)
        sections = compare(scores)
        if not in_sweep:
            refuse_one_kind(sections, scores)
        said = notes(run, parts, detectors, reasons, any(causes), learned)
        manifest.write(status="done", metrics={section.title: section.metrics for section in sections}, notes=said)
        if in_sweep:  # which tells its jobs apart all together: one range of seeds may hold no copy
            return run_dir
        title, names = f"Detectors, {run.model.get('name')}", list(run.detector)
        unmeasured, said = dict.fromkeys(reasons, NOT_APPLICABLE), [*counted(sections, scores), *said]
        table = table_of(title, names, sections, unmeasured, published or {}, said)
        table.write(run_dir)
        figure = figure_roc([section.roc for section in sections], list(detectors), run_dir / "roc.png")
        report = write_report(run_dir, tables=[table], figures=[(figure, CAPTION)], title="Detectors")
    Console(width=max(120, Console().width)).print(table.to_rich())
    word = f"{drawn} drawn" if drawn else "nothing left to draw"
    print(f"{word}; scores, table, figure and report: {report}")
    return run_dir


def _check(run: RunConfig, learn: Any) -> None:
    """What can be told before anything is loaded."""
    lines = []
    if run.guidance["_target_"] != "amg.guidance.Guidance":
        lines.append(f"guidance={run.guidance.get('name')}: task=detect scores unguided sampling; leave guidance out")
    if not run.detector:
        lines.append("detector: choose at least one of conf/detector, e.g. detector=[magnitude,norms]")
    if isinstance(learn, bool) or not isinstance(learn, int) or learn < 2:
        lines.append(f"task.learn must be a whole number >= 2, got {learn}")
    if lines:
        raise ConfigError(lines)


def _not_applicable(run: RunConfig) -> dict[str, str]:
    """Why a detector cannot serve, in one line, by its name.

    Raises:
        NotApplicable: where none can.
    """
    text = f"model={run.model.get('name')}, conditioning={run.conditioning}"
    reasons = {
        name: f"detector={name}: looks at what the prompt changes, and this run has no text ({text})"
        for name, node in run.detector.items()
        if locate(node["_target_"]).needs_prompts and run.conditioning != "prompt"
    }
    if len(reasons) == len(run.detector):
        raise NotApplicable([*reasons.values()])
    return reasons


def _detectors(run: RunConfig, parts: Parts, reasons: dict[str, str]) -> dict[str, Any]:
    """The detectors that can serve; one that looks along a chain without CFG joins the `reasons`.

    Raises:
        ConfigError: also for one that looks beyond the schedule.
        NotApplicable: where none is left.
    """
    from amg.detectors import places

    found = {}
    for name, node in run.detector.items():
        if name in reasons:
            continue
        with told(f"detector.{name}"):
            found[name] = component(node, model=parts.model, bank=parts.bank, similarity=parts.similarity)
        try:
            _, chain = places(found[name], run.sampler.steps)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        if found[name].needs_prompts and chain and run.s0 == 1:
            reasons[name] = f"detector.{name}: at s0=1 a chain has no unconditional prediction; set s0 > 1"
            del found[name]
    if not found:
        raise NotApplicable([*reasons.values()])
    return found
