"""Kills `task=bank` at random moments of each step, then compares what it leaves with a bank that nobody disturbed.

    python benchmarks/kill_bank.py --moments 20

Rows must be the same, vectors up to half precision, answers the same; also after two processes worked on one bank at
once, and after two parts of two processes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SMALL = (
    "import amg.bank.rows as r, amg.bank.vectors as v; r.FILE, v.BLOCK = 64, 32; from experiments.cli.main import main"
)
"""Small files, so that a small bank has many of them."""


def train(folder: Path, n: int) -> None:
    """Images with captions, every tenth a repeat."""
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(n):
        file = folder / f"{i:04d}.png"
        if i % 10 == 9:
            file.write_bytes((folder / f"{i - 5:04d}.png").read_bytes())
        else:
            small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((32, 32)).save(file)
        file.with_suffix(".txt").write_text(f"caption {i}")


def call(folder: Path, bank: str, *keys: str) -> subprocess.Popen:
    words = ["task=bank", f"task.out={bank}", "data=folder", "data.path=train", "trainer=cpu", "similarity=lab_guide"]
    words += ["similarity@judge=nl2", *keys]
    code = f"import sys; {SMALL}; from experiments.cli.main import main; sys.exit(main({words!r}))"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {err}")


def alike(folder: Path, one: str, other: str) -> None:
    """Compares two banks: rows, vectors, answers."""
    from unittest.mock import patch

    from amg.bank import rows

    with patch.object(rows, "FILE", 64):
        _alike(folder, one, other)


def _alike(folder: Path, one: str, other: str) -> None:
    from amg import TrainingBank

    banks = [TrainingBank.open(folder / name) for name in (one, other)]
    assert banks[0].digest() == banks[1].digest() and list(banks[0].keys) == list(banks[1].keys)
    assert list(banks[0].all_captions) == list(banks[1].all_captions)
    files = [next((folder / name / "vectors").glob("*/vectors.npy")) for name in (one, other)]
    for file in files:
        done = np.fromfile(file.with_suffix(".done"), np.uint8)
        assert done.all() and len(done) == -(-len(banks[0]) // 32), f"{file}: {done}"
    a, b = (np.load(file).astype(np.float32) for file in files)
    assert a.shape == b.shape and np.abs(a - b).max() <= 2e-3
    assert ((a[:50] @ a.T).argmax(1) == (b[:50] @ b.T).argmax(1)).all()
    left = [file for file in (folder / other).rglob(".*") if file.suffix not in (".lock", "") and file.is_file()]
    print(f"  {other}: {len(banks[1])} entries, the same; unfinished files left: {len(left)}")


def disturbed(folder: Path, moments: int, seed: int = 0) -> None:
    """Kills each step at random moments, then lets it end; after it two at once, and two parts."""
    generator = random.Random(seed)
    start = time.perf_counter()
    finished(call(folder, "whole"))
    seconds = time.perf_counter() - start
    print(f"undisturbed: {seconds:.1f} s")
    for step in ("rows", "vectors", "index"):
        for moment in range(moments):
            process = call(folder, "killed", f"task.step={step}")
            try:
                process.wait(seconds * (0.3 + 0.7 * generator.random()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stderr:
                process.stderr.close()
            print(f"  {step} {moment}: {'killed' if process.returncode < 0 else 'done'}")
        finished(call(folder, "killed", f"task.step={step}"))
    alike(folder, "whole", "killed")
    finished(call(folder, "both"), call(folder, "both"))
    alike(folder, "whole", "both")
    finished(call(folder, "parts", "task.step=rows"))
    keys = ("task.step=vectors", "task.parts=2")
    finished(call(folder, "parts", *keys, "task.part=0"), call(folder, "parts", *keys, "task.part=1"))
    alike(folder, "whole", "parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--images", type=int, default=600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "train", args.images)
        disturbed(Path(folder), args.moments)


if __name__ == "__main__":
    main()
