"""What `import amg` costs, as a ratio to `import torch`: python benchmarks/bench_import.py"""

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATEMENTS = ("import amg", "from amg import AntiMemorizationGuidance, TrainingBank, guard, sample", "import run")
TIMED = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """In a fresh interpreter, whose own start is not counted."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def main(rounds: int = 5) -> None:
    names = ("import torch", *STATEMENTS)
    for name in names:
        seconds(name)  # files into the cache of the disk
    times = {name: [] for name in names}
    for _ in range(rounds):  # in turn, so that a busy machine slows all alike
        for name in names:
            times[name].append(seconds(name))
    torch = statistics.median(times["import torch"])
    for name in names:
        median = statistics.median(times[name])
        print(f"{median:7.3f} s  {median / torch:6.3f} × import torch  {name}")


if __name__ == "__main__":
    main()
