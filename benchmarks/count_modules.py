"""Counts the files of `experiments/` that one run enters before its report.

    python -m benchmarks.count_modules

Runs `python run.py n_samples=2` in a temporary folder under `sys.setprofile`. A file is entered when one of its
functions is called. Module and class bodies do not count: imports run them. The report begins with the first call into
`experiments/report/`. Exits with 1 beyond the budget of 16 files.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = f"{ROOT / 'experiments'}{os.sep}"
REPORT = f"{EXPERIMENTS}report{os.sep}"
ARGUMENTS = ["n_samples=2"]
BUDGET = 16


class EnteredFiles:
    """A profile function that collects files in the order of first entry, until the report begins."""

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}  # a set that keeps its order
        self.report_begun = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # bodies of modules and classes are not
        if event != "call" or not is_function or not code.co_filename.startswith(EXPERIMENTS):
            return
        if code.co_filename.startswith(REPORT):
            self.report_begun = True
            sys.setprofile(None)
        else:
            self.paths.setdefault(code.co_filename)


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sys.path.insert(0, str(ROOT))  # this copy's `amg` and `experiments`, also where another is installed
    from experiments.cli.main import main as run

    entered = EnteredFiles()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # a fresh `runs/`: a finished run would sample nothing
        try:
            sys.setprofile(entered)
            code = run(ARGUMENTS)
        finally:
            sys.setprofile(None)
            os.chdir(before)
    if code or not entered.report_begun:
        print(f"the run ended before its report, with exit code {code}", file=sys.stderr)
        return code or 1
    for path in entered.paths:
        print(Path(path).relative_to(ROOT))
    print(f"{len(entered.paths)} files of experiments/ before the report; at most {BUDGET} wanted")
    return int(len(entered.paths) > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
