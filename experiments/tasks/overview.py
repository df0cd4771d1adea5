"""`task=overview`: one page over several experiments, claim by claim, with the tables and figures of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.schema import ConfigError, RunConfig
from experiments.report.page import figure, template
from experiments.report.samples import SampleTable, sample_table
from experiments.run import records
from experiments.run.folder import read_json
from experiments.tasks.task import Task

EXPERIMENTS = ("table1", "table2", "table3", "table4", "table5", "figure3", "figure4", "rivals")
PAIRS, SAMPLES = 10, 2000
"""Of each run and of each experiment: the page holds all of them; the reports that it links hold more."""


@dataclass(frozen=True)
class Overview(Task):
    """Writes `tables.html`, which needs nothing beside itself: claims, tables, figures, nearest pairs and samples.

    Args:
        experiments: folders below `root` that hold a `report.json`; the others are named as not run. With each of them
            come those of other models, `<experiment>-<model>`.
        failed: those whose command did not end well; said on the page, since what it shows may be older or in part.
        root: the folder of the experiments; the page lies in `output_dir`, or in it.
    Raises:
        ConfigError: where none of them has a report.
    """

    experiments: Sequence[str] = EXPERIMENTS
    failed: Sequence[str] = ()
    root: str = "runs"

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        folder = Path(self.root)
        places = [place for name in self.experiments for place in (folder / name, *sorted(folder.glob(f"{name}-*")))]
        found = {place.name: _read(place) for place in places if (place / "report.json").is_file()}
        if not found:
            raise ConfigError(
                [f"task.experiments: no report below {folder}; first python run.py experiment={self.experiments[0]}"]
            )
        place = Path(config.output_dir or self.root)
        place.mkdir(parents=True, exist_ok=True)
        page = place / "tables.html"
        page.write_text(_page(found, folder, place, list(self.experiments), list(self.failed)), encoding="utf-8")
        print(f"overview: {page}")
        return page


def by_claim(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Groups the verdicts of all experiments by claim, keeping the order in which claims first appear."""
    order: list[str] = []
    found: dict[str, list[dict[str, str]]] = {}
    for name, report in reports.items():
        place = 0
        for claim in report["claims"]:
            if claim["claim"] not in found:
                order.insert(place, claim["claim"])
            found.setdefault(claim["claim"], []).append({**claim, "experiment": name})
            place = order.index(claim["claim"]) + 1
    return {text: found[text] for text in order}


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "report.json"
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    return {**read_json(file), "folder": folder, "made": made}


def _page(found: dict[str, dict[str, Any]], root: Path, place: Path, asked: list[str], failed: list[str]) -> str:
    from os.path import relpath

    from markupsafe import Markup

    sections = [
        {
            "name": name,
            "subtitle": report["subtitle"],
            "made": report["made"],
            "failed": name in failed,
            "facts": report["facts"],
            "tables": [Markup(table) for table in report["tables"]],
            "figures": [figure(report["folder"] / file, caption) for file, caption in report["figures"]],
            "pairs": report.get("pairs", []),
            "samples": _samples(report, place),
            "negated": report.get("negated", False),
            "report": Path(relpath(report["folder"] / "report.html", place)).as_posix(),
        }
        for name, report in found.items()
    ]
    missing = [name for name in dict.fromkeys([*asked, *failed]) if name not in found]
    return template("overview.html.j2").render(
        sections=sections, claims=by_claim(found), missing=missing, pairs_each=PAIRS
    )


def _samples(report: Mapping[str, Any], place: Path) -> SampleTable:
    """Of the records that the report was made of, a share of each run."""
    runs = {name: report["folder"] / path for name, path in report.get("runs", {}).items()}
    return sample_table(runs, {name: records.read(path) for name, path in runs.items()}, place, SAMPLES)
