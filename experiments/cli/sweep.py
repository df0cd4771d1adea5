"""Rows of a table as jobs of a Hydra multirun: one failing job does not stop the others and is named at the end."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.cli.process import process
from experiments.config.bind import locate
from experiments.config.messages import FULL, SEVERAL, of_disk
from experiments.config.schema import ConfigError, NotApplicable


def rows_of(experiment: DictConfig, arguments: list[str]) -> list[list[str]]:
    """Returns the overrides of each multirun that draws the rows of an experiment's tables.

    A row is a guidance; a table may set other keys beside it. What is typed comes before both.
    """
    typed = {argument.lstrip("+~").split("=")[0] for argument in arguments}
    table = experiment.get("table") or {}
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for one in table.get("tables", [table]):
        keys = tuple(word for word in one.get("keys", ()) if word.split("=")[0] not in typed)
        rows = (row.row for row in one.get("rows", ()) if row.get("run", True))
        found.setdefault(keys, {}).update(dict.fromkeys(rows))
    if "guidance" in typed:
        return [[*keys] for keys in found]
    return [[f"guidance={','.join(rows)}", *keys] for keys, rows in found.items() if rows]


@process()  # a launcher may run it in a process of its own
def one_job(cfg: DictConfig) -> None:
    """Runs one job and leaves `result.json` in its folder; never raises for what goes wrong inside."""
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
    folder.mkdir(parents=True, exist_ok=True)
    overrides = list(hydra.overrides.task)
    result: dict[str, Any] = {"overrides": overrides, "name": cfg.get("name"), "run_dir": None}
    result |= {"guidance": hydra.runtime.choices.get("guidance"), "task": OmegaConf.select(cfg, "task._target_")}
    result |= {group: list(cfg.get(group) or {}) for group in SEVERAL}
    if cfg.get("table"):
        result["table"] = OmegaConf.to_container(cfg.table, resolve=True)
    leave(folder, result | {"status": "failed", "message": "stopped before its end; the same command continues it"})
    try:
        own_threads()
        one_device(cfg)
        OmegaConf.update(cfg, "trainer.devices", 1, force_add=True)
        from experiments.tasks.run import run

        own = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath")]
        command = shlex.join(["python", "run.py", *own, *overrides])
        run_dir = run(cfg, command=command, in_sweep=True)
        result |= {"status": "done", "run_dir": str(run_dir)}
    except NotApplicable as error:
        result |= {"status": "n/a", "message": "; ".join(error.lines)}
    except ConfigError as error:
        result |= {"status": "bad input", "message": "; ".join(error.lines)}
    except Exception as error:  # a sweep goes on; the failure is told at the end and its traceback kept
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # the next job would find no more room
        if (line := of_disk(error)) is None:
            (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            line = f"{type(error).__name__}: {error} (see {folder / 'traceback.txt'})"
        result |= {"status": "failed", "message": line}
    leave(folder, result)


def own_threads() -> None:
    """As many threads as OMP_NUM_THREADS says, if it does: joblib sets MKL's beside it, and torch takes the fewer."""
    if (said := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        import torch

        torch.set_num_threads(max(1, int(said)))


def leave(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json`, whole or not at all."""
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result))
    temporary.replace(folder / "result.json")


def one_device(cfg: DictConfig) -> None:
    """Refuses more than one device per job: the processes that Lightning starts would run the whole sweep again.

    `trainer.devices=auto` becomes 1 in a job.
    """
    devices = OmegaConf.select(cfg, "trainer.devices")
    if devices is not None and str(devices) not in ("auto", "1"):
        raise ConfigError(
            [f"trainer.devices={devices}: a job of a sweep takes one device; leave it out, and run jobs side by side "
             "with hydra/launcher=parallel or slurm"]
        )  # fmt: skip


def finish(folder: Path, command: str = "") -> int:
    """Table and report over all jobs of a sweep; names what failed; returns the exit code.

    Args:
        command: what was typed; the report shows it.
    """
    files = sorted(folder.glob("*/*/result.json"), key=lambda file: [*map(int, file.parts[-3:-1])])
    results = [json.loads(file.read_text()) for file in files]
    if not results:
        return 1
    try:
        _show(results, command)
    finally:
        for result in results:
            if result["status"] == "n/a":
                print(f"n/a: {result['message']}", file=sys.stderr)
        for result in results:
            if result["status"] in ("failed", "bad input"):
                print(f"error: {' '.join(result['overrides'])}: {result['message']}", file=sys.stderr)
    statuses = {result["status"] for result in results}
    return 1 if "failed" in statuses else 2 if "bad input" in statuses else 0


def _show(results: list[dict[str, Any]], command: str) -> None:
    """Tables and report over the jobs that are done, logged where the first of them logs.

    The task makes them; one without a table shows none.
    """
    done = [result for result in results if result["status"] == "done"]
    if not done:
        return
    from experiments.report.loggers import log
    from experiments.run.folder import configuration
    from experiments.tables.names import keys

    for result, key in zip(results, keys(results), strict=True):
        result["key"] = key
    folder = locate(done[0]["task"]).present(results, command)
    if folder is not None:
        log(configuration(done[0]["run_dir"]), folder, {}, jobs=[result["overrides"] for result in results])
