"""Rows of a table as jobs of a Hydra multirun: one failing job does not stop the others and is named at the end."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.config import ConfigError, check, not_applicable


def one_job(cfg: DictConfig) -> None:
    """Runs one job and leaves `result.json` in its folder; never raises for what goes wrong inside."""
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
    folder.mkdir(parents=True, exist_ok=True)
    overrides = list(hydra.overrides.task)
    key = hydra.runtime.choices.get("row") or " ".join(overrides)
    result: dict[str, Any] = {"key": key, "overrides": overrides, "name": cfg.get("name"), "run_dir": None}
    if cfg.get("table"):
        result["table"] = OmegaConf.to_container(cfg.table, resolve=True)
    try:
        config = check(cfg)
        reason = not_applicable(config)
        if reason:
            result |= {"status": "n/a", "message": reason}
        else:
            from experiments.run import run

            run_dir = run(cfg, command="python run.py " + " ".join(overrides), in_sweep=True)
            result |= {"status": "done", "run_dir": str(run_dir)}
    except ConfigError as error:
        result |= {"status": "bad input", "message": "; ".join(error.lines)}
    except Exception as error:  # a sweep goes on; the failure is told at the end and its traceback kept
        (folder / "traceback.txt").write_text(traceback.format_exc())
        result |= {"status": "failed", "message": f"{type(error).__name__}: {error} (see {folder / 'traceback.txt'})"}
    (folder / "result.json").write_text(json.dumps(result))


def finish(folder: Path) -> int:
    """Table and report over all jobs of a sweep; names what failed; returns the exit code."""
    files = sorted(folder.glob("*/result.json"), key=lambda file: int(file.parent.name))
    results = [json.loads(file.read_text()) for file in files]
    if not results:
        return 1
    if any(result["status"] == "done" for result in results):
        from experiments.present import present_sweep

        present_sweep(results)
    for result in results:
        if result["status"] == "n/a":
            print(f"n/a: {result['message']}", file=sys.stderr)
    for result in results:
        if result["status"] in ("failed", "bad input"):
            print(f"error: {' '.join(result['overrides'])}: {result['message']}", file=sys.stderr)
    statuses = {result["status"] for result in results}
    return 1 if "failed" in statuses else 2 if "bad input" in statuses else 0
