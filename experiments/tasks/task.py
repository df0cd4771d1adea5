"""Tasks: what a configuration asks to be done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from amg.fetch import offline
from experiments.config.bind import check, not_applicable
from experiments.config.schema import ConfigError, NotApplicable, RunConfig


class Task:
    """Does what one configuration asks for; its fields are the keys below `task`."""

    builds = False
    """Whether it builds components, whose files are fetched first where they are missing."""

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path | None:
        """Does it and returns the folder or file that it leaves.

        Args:
            command: what was typed.
            in_sweep: leaves the table and the report to `present`.
        """
        raise NotImplementedError

    @staticmethod
    def present(results: Sequence[Mapping[str, Any]], command: str = "") -> Path | None:
        """Shows the jobs of a sweep together and returns the folder; None for a task without a table.

        Args:
            results: what each job left; "key" is its row, jobs of one row differ in their seeds only.
        """
        return None


def run(cfg: DictConfig, command: str = "", in_sweep: bool = False) -> Path | None:
    """Checks the configuration, then does its task; returns what the task returns.

    Raises:
        ConfigError: for everything that is the user's to fix; `NotApplicable` if the model cannot do it.
    """
    config = check(cfg)
    if reason := not_applicable(config):
        raise NotApplicable([reason])
    from experiments.config.build import component

    task = component(config.task)
    if not isinstance(task, Task):
        raise ConfigError([f"task._target_={config.task['_target_']}: is no subclass of experiments.tasks.task.Task"])
    if not config.download:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the hub's own client, which loads later
    elif task.builds and not offline():
        from experiments.tasks.fetch import fetch

        fetch(config)
    return task.run(config, command, in_sweep)
