"""Results of a run or a sweep as people see them: table, figures, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from experiments.config.schema import RunConfig
from experiments.run.folder import Manifest
from experiments.tables.table import Table, TableSpec, columns, render

USUAL = (
    *("top5", "top1", "copies", "judge_copies", "planted_copies", "truth_copies", "fid", "matched_ratio"),
    *("aligned_ordinary", "alignment", "alignment_ordinary", "samples_guided", "steps_guided"),
)
"""Columns of a table that no experiment describes."""
COST = ("tries", "refused", "seconds")
"""Columns of every table of runs with `on_copy`."""
RATIO_NOTE = (
    "FID ratio: to that of as many unguided samples that are no copies, same reference; copies must not flatter."
)


def present(run: RunConfig, parts: Any, run_dir: Path, metrics: dict[str, Any], drawn: int, in_sweep: bool) -> None:
    """Table and report of one run; a sweep prints its own over all rows."""
    from experiments.report.page import write_report

    label = run.guidance.get("name")
    spec = {
        "title": f"{run.model.get('name')}, guidance={label}",
        "rows": [{"row": "run", "label": label}],
        "columns": useful([metrics]),
        "distance": run.similarity.get("name") == "nl2",
    }
    table = render(spec, {"run": metrics})
    table.write(run_dir)
    if in_sweep:
        return
    _print_upright(table)
    report = write_report(run_dir, tables=[table], bank_images=parts.bank.pictures)
    word = f"{drawn} drawn" if drawn else "nothing left to draw"
    print(f"{word}; images, records and report: {report}")


def show(table: Table) -> None:
    """Prints a table of several rows; ten columns of shares need the width."""
    Console(width=max(140, Console().width)).print(table.to_rich())


def _print_upright(table: Table) -> None:
    """One run reads better as a list than as a row of ten columns."""
    upright = RichTable(title=table.title, title_justify="left", box=None, show_header=False, padding=(0, 2))
    for name, cell in zip(table.head, table.lines[0].cells, strict=True):
        upright.add_row(name, cell)
    console = Console()
    console.print(upright)
    for note in table.notes:
        console.print(note, style="dim")


def present_sweep(results: list[dict[str, Any]], command: str = "") -> Path:
    """Tables, figures and report over all jobs of a sweep; returns their folder.

    Args:
        results: what each job left; "key" is its row, jobs of one row differ in their seeds alone.
        command: what was typed.
    """
    from experiments.report.page import write_report
    from experiments.tables.claims import claims
    from experiments.tables.rows import measured, parts_of, rows

    folder = Path("runs") / results[0]["name"]
    by_job = measured(results)
    metrics = rows(results, by_job)
    tables = []
    for spec in _specs(results, metrics):
        table = render(spec, metrics)
        tables.append(table)
        show(table)
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        place = folder / f"table-{i + 1}" if len(tables) > 1 else folder
        place.mkdir(exist_ok=True)
        table.write(place)
    named = {job_name(result, results): i for i, result in enumerate(results) if by_job[i] is not None}
    runs = {name: Path(results[i]["run_dir"]) for name, i in named.items()}
    each = {name: by_job[i] for name, i in named.items()}
    images = parts_of(str(next(iter(runs.values())))).bank.pictures
    report = write_report(
        folder, tables=tables, runs=runs, claims=claims(metrics), metrics=each, bank_images=images, command=command
    )
    print(f"table and report: {report}")
    return folder


def job_name(result: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The row of a job, with its seed where the row has several."""
    if sum(other["key"] == result["key"] for other in results) == 1:
        return result["key"]
    return " ".join([result["key"], *(word for word in result["overrides"] if word.lstrip("+").startswith("seed="))])


def _specs(results: list[dict[str, Any]], metrics: dict[str, Any]) -> list[TableSpec | dict[str, Any]]:
    """The tables that an experiment names, or one over all rows where they are not the experiment's own."""
    given = next((result["table"] for result in results if result.get("table")), None)
    if given is not None:
        swept = {word for result in results for word in result["overrides"]}
        common = set.intersection(*(set(result["overrides"]) for result in results))
        specs = [TableSpec.model_validate(spec) for spec in given.get("tables", [given])]
        specs = [
            spec.model_copy(update={"keys": [word for word in spec.keys if word in swept - common]}) for spec in specs
        ]
        if any(spec.key(row) in metrics for spec in specs for row in spec.rows):
            return [_with_cost(spec, metrics) for spec in specs]
    found = [value for value in metrics.values() if isinstance(value, dict)]
    first = Manifest(Path(next(r["run_dir"] for r in results if r["run_dir"]))).read()
    return [
        {
            "title": results[0]["name"],
            "rows": [{"row": key, "label": key} for key in metrics],
            "columns": useful(found),
            "notes": [RATIO_NOTE],
            "distance": first["similarity"] == "nl2",
        }
    ]


def _with_cost(spec: TableSpec, metrics: dict[str, Any]) -> TableSpec:
    """A table with the columns of COST behind its own, where `on_copy` acted."""
    acted = any(isinstance(one, dict) and one.get("tries") is not None for one in metrics.values())
    known = {column.key for column in spec.columns}
    more = [columns()[key] for key in COST if acted and key not in known]
    return spec.model_copy(update={"columns": [*spec.columns, *more]})


def useful(metrics: list[dict[str, Any]]) -> list[str]:
    """The usual columns that some run has measured, and what `on_copy` cost where it acted."""
    keys = (*USUAL, *COST) if any(one.get("tries") is not None for one in metrics) else USUAL
    return [key for key in keys if any(one.get(key) is not None for one in metrics)]
