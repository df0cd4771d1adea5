"""Kills `task=bank` at random moments of each step, then compares the banks with one that nobody disturbed.

    python -m benchmarks.kill_bank --moments 20 # on a system that can fork

Rows must be the same, vectors up to half precision, answers the same; also after two processes worked on one bank at
once, and after two parts of two processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

STEPS = ("rows", "vectors", "index")
FORK = multiprocessing.get_context("fork")


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


def call(folder: Path, bank: str, *keys: str) -> BaseProcess:
    """Starts `task=bank` in a child that has all imports already, so that what is killed is its work."""
    words = ["task=bank", f"task.out={bank}", "data=folder", "data.path=train", "trainer=cpu", "similarity=lab_guide"]
    process = FORK.Process(target=_run, args=(folder, [*words, "similarity@judge=nl2", *keys]))
    process.start()
    return process


def _run(folder: Path, words: list[str]) -> None:
    from amg.bank import rows, vectors
    from experiments.cli.main import main

    rows.FILE, vectors.BLOCK = 64, 32  # small files, so that a small bank has many of them
    os.chdir(folder)
    with open(folder / "log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(main(words))


def finished(*processes: BaseProcess) -> None:
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"exit code {process.exitcode}: see the log")


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
    """Kills each step of as many banks at a random moment, then lets it end; at last two at once, and two parts."""
    import torch

    import experiments.tasks.bank  # noqa: F401 - before the children are forked
    from amg.worlds.lab import LabDescriptor  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    generator, took = random.Random(seed), {}
    for step in STEPS:
        start = time.perf_counter()
        finished(call(folder, "whole", f"task.step={step}"))
        took[step] = time.perf_counter() - start
    print("undisturbed: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in took.items()))
    for moment in range(moments):
        bank, killed = f"killed{moment}", []
        for step in STEPS:
            process = call(folder, bank, f"task.step={step}")
            process.join(took[step] * generator.random())
            process.kill()
            process.join()
            killed.append(process.exitcode == -signal.SIGKILL)
            finished(call(folder, bank, f"task.step={step}"))
        print(f"killed in {', '.join(step for step, yes in zip(STEPS, killed, strict=True) if yes)}")
        alike(folder, "whole", bank)
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
