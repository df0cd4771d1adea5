"""From a configuration to its task; what it names and does not have on disk is fetched first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from experiments.config.bind import check, not_applicable
from experiments.config.schema import ConfigError, NotApplicable, RunConfig


def run(cfg: DictConfig, command: str = "", in_sweep: bool = False) -> Path | None:
    """Checks the configuration, then does its task; returns what the task returns.

    Raises:
        ConfigError: for everything that is the user's to fix; `NotApplicable` if the model cannot do it.
    """
    if not cfg.get("download", True):
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's own client loads
    config = check(cfg)
    if reason := not_applicable(config):
        raise NotApplicable([reason])
    from amg.fetch import offline
    from experiments.config.build import component
    from experiments.tasks.task import Task

    task = component(config.task)
    if not isinstance(task, Task):
        raise ConfigError([f"task._target_={config.task['_target_']}: is no subclass of experiments.tasks.task.Task"])
    if config.download and task.builds and not offline():
        fetch(config)
    return task.run(config, command, in_sweep)


def fetch(config: RunConfig) -> None:
    """Fetches weights, descriptors and training images that are missing; what is there is left alone.

    A component says by its `fetch`, a function of its own keys, how it is fetched; else its module does. What fails is
    told; the others are fetched all the same.

    Raises:
        ConfigError: with one line for each that could not be fetched.
    """
    from amg.fetch import NotFetched
    from experiments.config.build import declared

    lines = []
    for key, own in declared(config, "fetch"):
        try:
            own()
        except (NotFetched, OSError, ValueError) as error:
            lines.append(f"{key}: not fetched: {' '.join(str(error).split())}; download=false looks on disk alone")
    if config.data.get("name") == "memorized_laion":
        lines += _training_images(config)
    if lines:
        raise ConfigError(lines)


def _training_images(config: RunConfig) -> list[str]:
    """Fetches the training images of the memorized prompts, unless every address was tried before."""
    from filelock import FileLock

    from amg.bank.sources.folder import FAILED
    from amg.prompts.text_files import json_lines
    from experiments.tasks.download import NOT_TRIED, Download

    folder = Path(config.data["path"])
    listed = folder / FAILED
    if listed.is_file() and all(row.get("reason") != NOT_TRIED for _, row in json_lines(listed)):
        return []
    if folder.is_dir() and not listed.is_file() and any(folder.iterdir()):  # a folder of the user's own
        return []
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{folder}: the training images of 500 prompts, 20 MB each at most", file=sys.stderr)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            Download(path=str(folder)).run(config)
        except (SystemExit, ConfigError) as error:
            return [f"data.path: {str(error).removeprefix('error: ')}"]
    return []
