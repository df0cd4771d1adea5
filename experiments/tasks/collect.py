"""`task=collect`: any set of finished runs in one table, those that differ in their seeds alone as one row."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg.metrics.values import Share
from experiments.config.schema import ConfigError, RunConfig
from experiments.report.present import show, useful
from experiments.run.folder import DECIDES, NODES, Manifest, drawn_with
from experiments.tables.names import labels, refuse_overlap
from experiments.tables.rows import pool
from experiments.tables.table import render
from experiments.tasks.task import Task

SHOWN = ("model", "conditioning", "guidance", "s0")


@dataclass(frozen=True)
class Finished:
    """A run folder that is done."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def seeds(self) -> range:
        return range(self.config["seed"], self.config["seed"] + self.config["n_samples"])

    @property
    def setting(self) -> tuple[Any, ...]:
        """All that decides its numbers, but the seeds."""
        return self.manifest["setting"], self.config["n_samples"], *self.config["metrics"].values()


@dataclass(frozen=True)
class Collect(Task):
    """Writes one table and report over run folders; returns the folder, `output_dir` or `runs/collected`.

    Args:
        runs: run folders or folders that hold some, with glob patterns. What is no run is passed over; a run that is
            not finished is named and left out.
    """

    runs: list[str]

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        from experiments.report.page import write_report

        found, left_out = read(run_folders([self.runs] if isinstance(self.runs, str) else self.runs))
        if not found:
            raise ConfigError([f"task.runs={self.runs}: no finished run among them", *left_out])
        groups: dict[tuple[Any, ...], list[Finished]] = {}
        for one in sorted(found, key=lambda one: one.seeds.start):
            groups.setdefault(one.setting, []).append(one)
        refuse_overlap([(str(one.folder), one.manifest["setting"], one.seeds) for one in found])
        names = _names([group[0] for group in groups.values()])
        metrics = {
            name: pool([one.manifest["metrics"] for one in group])
            for name, group in zip(names, groups.values(), strict=True)
        }
        spec = {
            "title": f"{len(found)} runs, {len(groups)} settings",
            "rows": [{"row": name, "label": name} for name in names],
            "columns": ["groups", "n", *useful(list(metrics.values()))],
            "notes": left_out,
            "distance": all(one.manifest["similarity"] == "nl2" for one in found),
        }
        table = render(spec, metrics)
        place = Path(config.output_dir or "runs/collected")
        table.write(place)
        show(table)
        folders = {
            f"{name} seed={one.seeds.start}" if len(group) > 1 else name: one.folder
            for name, group in zip(names, groups.values(), strict=True)
            for one in group
        }
        report = write_report(place, tables=[table], runs=folders, title=spec["title"], command=command)
        print(f"table and report: {report}")
        for line in left_out:
            print(line, file=sys.stderr)
        return place


def run_folders(patterns: Sequence[str]) -> list[Path]:
    """The run folders that match, and those directly in a folder that matches and is none itself.

    Raises:
        ConfigError: for a pattern that matches nothing.
    """
    folders: list[Path] = []
    for pattern in patterns:
        there = Path(pattern).exists()  # whose name may look like a pattern
        matches = [Path(match) for match in ([pattern] if there else sorted(glob.glob(pattern)))]
        if not matches:
            raise ConfigError([f"task.runs={pattern}: no such folder"])
        for match in matches:
            inside = [match] if _is_run(match) else sorted(match.glob("*/")) if match.is_dir() else []
            folders += [folder for folder in inside if _is_run(folder)]
    return list(dict.fromkeys(folders))


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("manifest.json", "config.yaml", "records"))


def read(folders: Sequence[Path]) -> tuple[list[Finished], list[str]]:
    """The finished runs, and a line for each of the others."""
    found, left_out = [], []
    for folder in folders:
        try:
            manifest = Manifest(folder).read()
            config = drawn_with(folder) | manifest.get("measured_with", {})
        except FileNotFoundError as error:
            left_out.append(f"left out: {folder}: not finished, no {Path(error.filename).name}")
            continue
        except ConfigError as error:
            left_out.append(f"left out: {error}")
            continue
        if reason := _unfinished(config, manifest):
            left_out.append(f"left out: {folder}: {reason}")
        else:
            found.append(Finished(folder, config, manifest))
    return found, left_out


def _unfinished(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    status = manifest.get("status")
    if status == "failed":
        return f"failed, {manifest.get('message')}"
    if status != "done":
        return "not finished; its own command continues it"
    if "setting" not in manifest:
        return "made by an earlier version; its own command renews it"
    if "n" not in manifest["metrics"]:
        return "detectors' scores; a sweep of task=detect makes their table"
    if not isinstance(manifest["metrics"]["copies"], Share):
        return "measured by an earlier version; its own command measures it again"
    if manifest["metrics"]["n"] != config["n_samples"]:
        return f"{manifest['metrics']['n']} of {config['n_samples']} samples; its own command draws the rest"
    return None


def _names(runs: Sequence[Finished]) -> list[str]:
    """A label per row; a hash tells apart what only prompts, bank or weights do."""
    keys = [key for key in (*DECIDES, *NODES, "n_samples", "metrics") if key != "seed"]
    if len(runs) == 1:
        config = runs[0].config
        return [" ".join(f"{key}={_short(config[key])}" for key in SHOWN)]
    found = labels([{key: run.config[key] for key in keys} for run in runs])
    return [
        name if found.count(name) == 1 else f"{name} ({run.manifest['setting']})".strip()
        for name, run in zip(found, runs, strict=True)
    ]


def _short(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else value
