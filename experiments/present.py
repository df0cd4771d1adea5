"""What a person sees when a run or a sweep ends: table, figures, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from experiments.config import RunConfig
from experiments.tables import Table, render

COLUMNS = [
    {"key": "top5", "label": "Top5 %", "format": ".2f", "better": "lower"},
    {"key": "top1", "label": "Top1", "format": ".2f", "better": "lower"},
    {"key": "copies", "label": "Copies (guide)", "format": "share", "better": "lower"},
    {"key": "judge_copies", "label": "Copies (judge)", "format": "share", "better": "lower"},
    {"key": "truth_copies", "label": "Copies (truth)", "format": "share", "better": "lower"},
    {"key": "fid", "label": "FID", "format": ".1f", "better": "lower"},
    {"key": "matched_ratio", "label": "FID ratio", "format": ".3f", "better": "lower"},
    {"key": "aligned_ordinary", "label": "Aligned, ordinary", "format": "share", "better": "higher"},
    {"key": "alignment", "label": "Alignment", "format": ".1f", "better": "higher"},
    {"key": "alignment_ordinary", "label": "Alignment, ordinary", "format": ".1f", "better": "higher"},
    {"key": "samples_guided", "label": "Samples guided", "format": "share"},
    {"key": "steps_guided_share", "label": "Steps guided", "format": "percent"},
]
RATIO_NOTE = (
    "FID ratio: to that of as many unguided samples that are no copies, same reference; copies must not flatter."
)


def present(run: RunConfig, parts: Any, run_dir: Path, metrics: dict[str, Any], drawn: int, in_sweep: bool) -> None:
    """Table and report of one run; a sweep prints its own over all rows."""
    from experiments.report import write_report

    label = run.guidance.get("name")
    spec = {
        "title": f"{run.model.get('name')}, guidance={label}",
        "rows": [{"row": "run", "label": label}],
        "columns": _useful([metrics]),
        "notes": [_notes(metrics)],
        "distance": run.similarity.get("name") == "nl2",
    }
    table = render(spec, {"run": metrics})
    table.write(run_dir)
    if in_sweep:
        return
    _print_upright(table)
    report = write_report(run_dir, tables=[table], bank_images=parts.bank.images)
    word = f"{drawn} drawn" if drawn else "nothing left to draw"
    print(f"{word}; pictures, records and report: {report}")


def _print_upright(table: Table) -> None:
    """One run reads better as a list than as a row of ten columns."""
    upright = RichTable(title=table.title, title_justify="left", box=None, show_header=False, padding=(0, 2))
    for name, cell in zip(table.head, table.lines[0].cells, strict=True):
        upright.add_row(name, cell)
    console = Console()
    console.print(upright)
    for note in table.notes:
        console.print(note, style="dim")


def present_sweep(results: list[dict[str, Any]]) -> None:
    """Tables, figures and report over all rows of a sweep."""
    from experiments.claims import claims
    from experiments.report import write_report
    from experiments.sweep_metrics import collect, parts_of

    name = results[0]["name"]
    folder = Path("runs") / name
    metrics = collect(results)
    tables = []
    for spec in _specs(results, metrics):
        table = render(spec, metrics)
        tables.append(table)
        Console(width=max(120, Console().width)).print(table.to_rich())
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        place = folder / f"table-{i + 1}" if len(tables) > 1 else folder
        place.mkdir(exist_ok=True)
        table.write(place)
    runs = {result["key"]: Path(result["run_dir"]) for result in results if result["status"] == "done"}
    images = parts_of(str(next(iter(runs.values())))).bank.images
    report = write_report(folder, tables=tables, runs=runs, claims=claims(metrics), metrics=metrics, bank_images=images)
    print(f"table and report: {report}")


def _specs(results: list[dict[str, Any]], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables that an experiment names, or one over all jobs."""
    given = next((result["table"] for result in results if result.get("table")), None)
    if given is not None:
        return given["tables"] if "tables" in given else [given]
    found = [value for value in metrics.values() if isinstance(value, dict)]
    first = json.loads((Path(next(r["run_dir"] for r in results if r["run_dir"])) / "manifest.json").read_text())
    return [
        {
            "title": results[0]["name"],
            "rows": [{"row": result["key"], "label": result["key"]} for result in results],
            "columns": _useful(found),
            "notes": [*{_notes(one) for one in found}, RATIO_NOTE],
            "distance": first["similarity"] == "nl2",
        }
    ]


def _useful(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [column for column in COLUMNS if any(one.get(column["key"]) is not None for one in metrics)]


def _notes(metrics: dict[str, Any]) -> str:
    return metrics["thresholds"][0].upper() + metrics["thresholds"][1:] + "."
