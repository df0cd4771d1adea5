"""Cost of importing the library, as a ratio to `import torch`.

    python -m benchmarks.bench_import

Budget: `import amg` at most 1.2 times `import torch`. Its names load at first use, so `import amg` alone costs next to
nothing; the second line adds what a caller then needs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

STATEMENTS = {
    "import torch": "import torch",
    "import amg": "import amg",
    "its four names": "from amg import AntiMemorizationGuidance, TrainingBank, guard, sample",
}
BUDGET = 1.2


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="medians of so many fresh processes (default 5)")
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats + 1):  # the first warms the disk; they take turns, so that a busy machine is unjust to none
        for name, code in STATEMENTS.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(some[1:]) for name, some in times.items()}
    for name, median in medians.items():
        print(f"{name:16} {median:6.2f} s   {median / medians['import torch']:5.2f} × import torch")
    return int(medians["import amg"] > BUDGET * medians["import torch"])


if __name__ == "__main__":
    sys.exit(main())
