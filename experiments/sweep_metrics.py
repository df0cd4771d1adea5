"""The metrics of all jobs of a sweep, each guided run compared with its unguided twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from experiments.build import Parts, build
from experiments.config import RunConfig
from experiments.measure import against_unguided
from experiments.tables import NOT_APPLICABLE

TWIN = ("model", "data", "conditioning", "s0", "sampler", "seed", "n_samples", "prompt", "prompts", "labels")


def collect(results: list[dict[str, Any]]) -> dict[str, dict[str, Any] | str | None]:
    """Metrics by the key of a job: a dict where it was done, "n/a" where the model cannot, None where it failed."""
    found: dict[str, dict[str, Any] | str | None] = {}
    for result in results:
        if result["status"] != "done":
            found[result["key"]] = NOT_APPLICABLE if result["status"] == "n/a" else None
            continue
        metrics = json.loads((Path(result["run_dir"]) / "manifest.json").read_text())["metrics"]
        run = config(result)
        twin = next((other for other in results if _is_twin(result, other)), None)
        if twin is not None:
            parts = parts_of(result["run_dir"])
            metrics |= against_unguided(run, parts, Path(result["run_dir"]), Path(twin["run_dir"]))
        found[result["key"]] = metrics
    return found


def config(result: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load((Path(result["run_dir"]) / "config.yaml").read_text()))


def parts_of(run_dir: str) -> Parts:
    return build(config({"run_dir": run_dir}))


def _is_twin(result: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `other` is the same run without guidance."""
    if other["status"] != "done" or other["run_dir"] == result["run_dir"]:
        return False
    a, b = config(result).model_dump(), config(other).model_dump()
    return b["guidance"].get("name") == "none" and all(a[key] == b[key] for key in TWIN)
