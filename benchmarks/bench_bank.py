"""A bank's cost by its size: rows from tars, opening, the index with its recall check, a query. CPU seconds, one core.

    python -m benchmarks.bench_bank                                    # 10,000 images, 100,000 vectors
    python -m benchmarks.bench_bank --images 100000 --vectors 1000000 10000000

Each part runs in a process of its own. Memory is what it takes beyond its imports, without mapped files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIMENSION = 512
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000])
    parser.add_argument("--vectors", type=int, nargs="*", default=[100_000])
    parser.add_argument("--folder", default=None, help="where the data lie; by default a folder that is deleted")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return PARTS[args.part[0]](Path(args.part[1]), int(args.part[2]))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for n in args.images:
            write_tars(Path(folder) / f"tars{n}", n)
            print(f"{n:>13,} images of 256² in tars: {told('rows', folder, n)}")
            print(f"{'':>13} opened: {told('open', folder, n)}")
        for n in args.vectors:
            told("vectors", folder, n)
            print(f"{n:>13,} vectors of {DIMENSION}, index with recall check: {told('index', folder, n)}")
            print(f"{'':>13} searched, batch {BATCH}: {told('search', folder, n)}")


def told(part: str, folder: str, n: int) -> str:
    """Runs one part in a process of its own; returns its line."""
    call = [sys.executable, __file__, "--part", part, folder, str(n)]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip()


class Memory:
    """What this process takes beyond its imports, without mapped files, which the system takes back when it wants."""

    def __init__(self):
        self.before = self.most = self._anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def __str__(self) -> str:
        return f"{self.most - self.before} MB more at most, {self._anonymous() - self.before} MB now"

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self._anonymous())
            time.sleep(0.01)

    @staticmethod
    def _anonymous() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def write_tars(folder: Path, n: int) -> None:
    """10,000 images a tar, captioned; 200 different ones, each with a number behind its end."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    generator, encoded = np.random.default_rng(0), []
    for _ in range(200):
        small = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for start in range(0, n, 10_000):
        with tarfile.open(folder / f"{start // 10_000:05d}.tar", "w") as tar:
            for i in range(start, min(start + 10_000, n)):
                image = encoded[i % len(encoded)] + i.to_bytes(8, "little")
                for name, data in ((f"{i:09d}.jpg", image), (f"{i:09d}.txt", f"a picture called {i}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def rows(folder: Path, n: int) -> None:
    from amg import TrainingBank

    memory = Memory()
    wall, cpu = time.perf_counter(), time.process_time()
    bank = TrainingBank.build(folder / f"bank{n}", folder / f"tars{n}")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(bank) == n and bank.captions[n - 1] == f"a picture called {n - 1}"
    print(f"{cpu:.1f} CPU s ({wall:.1f} s), {memory}")


def opened(folder: Path, n: int) -> None:
    from amg import TrainingBank

    memory = Memory()
    start = time.perf_counter()
    bank = TrainingBank.open(folder / f"bank{n}")
    middle = time.perf_counter()
    bank.captions[[0, n // 2, n - 1]]
    print(f"{middle - start:.3f} s, three captions {time.perf_counter() - middle:.3f} s, {memory}")


def stored(folder: Path, n: int):
    import numpy as np

    from amg.bank.blocks import Blocks

    return Blocks(folder / f"vectors{n}" / "vectors.npy", np.float16, (n, DIMENSION), 65_536)


def vectors(folder: Path, n: int) -> None:
    """Clusters of 50 on average, cosine to the centre 0.45 to 0.8."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(max(2, min(n // 50, 100_000)), DIMENSION, generator=generator), dim=1)
    blocks = stored(folder, n)
    blocks.allocate()
    for number in range(len(blocks)):
        size = blocks.rows(number).stop - blocks.rows(number).start
        own = centres[torch.randint(len(centres), (size,), generator=generator)]
        noise = F.normalize(torch.randn(size, DIMENSION, generator=generator), dim=1)
        near = 0.45 + 0.35 * torch.rand(size, 1, generator=generator)
        blocks.write(number, F.normalize(near * own + (1 - near**2).sqrt() * noise, dim=1).half().numpy())


def made(folder: Path, n: int):
    from amg.bank.faiss import FaissIndex

    return FaissIndex(stored(folder, n).load(random=True), folder / f"vectors{n}" / "codes.faiss")


def index(folder: Path, n: int) -> None:
    import torch

    from amg.bank.faiss import require

    require()
    torch.set_num_threads(1)
    memory = Memory()
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = made(folder, n)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    recall = json.dumps({cosine: round(value, 3) for cosine, (value, _, _) in found.recall.items()})
    print(f"{cpu:.1f} CPU s ({wall:.1f} s), {found.codes // 2} bytes a vector, recall@1 {recall}, {memory}")


def search(folder: Path, n: int) -> None:
    import torch
    import torch.nn.functional as F

    from amg.bank.faiss import near, require

    torch.set_num_threads(1)
    require().omp_set_num_threads(1)
    memory = Memory()
    found = made(folder, n)
    queries = near(found.vectors, 0.5, 10 * BATCH, seed=1)
    found.search(queries[:BATCH])
    cpu = time.process_time()
    for some in queries.split(BATCH):
        found.search(F.normalize(some, dim=1))
    print(f"{(time.process_time() - cpu) / len(queries) * 1e3:.2f} CPU ms a query, {memory}")


PARTS = {"rows": rows, "open": opened, "vectors": vectors, "index": index, "search": search}

if __name__ == "__main__":
    main()
