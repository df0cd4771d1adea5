"""Tasks: what a configuration asks to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig


class Task:
    """Does what one configuration asks for; its fields are the keys below `task`."""

    builds = False
    """Builds components; their files are fetched first where they are missing."""

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
