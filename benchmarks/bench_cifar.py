"""What AMG adds to a CIFAR-10 sampling step: time per picture of network, search and guidance.

    python benchmarks/bench_cifar.py --synthetic                     # any clone: 50,000 random pictures
    python benchmarks/bench_cifar.py --data data/cifar10             # the real training set

The network has the true size of iDDPM and random weights; its time does not depend on them. Budgets: exact search at
most 5 % of a step at batch 64, guidance that flags nothing at most 5 % in all.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from amg import TrainingBank, sample
from amg.bank.sources.cifar10 import read_cifar10
from amg.guidance import AntiMemorizationGuidance
from amg.guidance.released_iddpm import ReleasedIDDPM
from amg.models.convert_iddpm import save, unet
from amg.models.ddpm import DDPM
from amg.similarity import NormalizedL2
from amg.thresholds import Always, Constant


def seconds(actions: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median time of each action; they take turns, so that a busy machine is unjust to none."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            start = clock()
            action()
            times[name].append(clock() - start)
    return {name: statistics.median(some[1:]) for name, some in times.items()}  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10", help="Parquet file or folder, or torchvision's root")
    parser.add_argument("--synthetic", action="store_true", help="50,000 random pictures instead")
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=2, help="sampling steps per chain that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=128, help="channels; 128 is the true size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wall", action="store_true", help="wall-clock time; default is CPU time, blind to neighbours")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time

    if args.synthetic:
        images = torch.rand(args.pictures, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    else:
        images = read_cifar10(args.data)[0][: args.pictures]
    bank = TrainingBank.from_tensors(images)
    with tempfile.TemporaryDirectory() as folder:
        model = DDPM(save(unet(args.width), folder))
    similarity = NormalizedL2(bank)
    watch = AntiMemorizationGuidance(similarity, Constant(float("inf")), c3=1.0)
    act = AntiMemorizationGuidance(similarity, Always(), c3=1e-6, terms=("sim",))
    released = ReleasedIDDPM(bank, arm=0.0)  # measures at every step, guides at none

    weights = sum(p.numel() for p in model.network.parameters()) / 1e6
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} thread(s), torch {torch.__version__}, ", end=""
    )
    print(f"{len(bank):,} {'random' if args.synthetic else 'training'} pictures, network of {weights:.1f} M weights")
    print(f"{'wall' if args.wall else 'CPU'} milliseconds per picture and step, median of {args.repeats}\n")
    head = [
        "batch",
        "network",
        "search",
        "plain step",
        "watched",
        "all flagged",
        "released",
        "search/step",
        "watched/plain",
    ]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for batch in args.batches:
        x_t, seeds, t = torch.randn(batch, 3, 32, 32), list(range(batch)), torch.tensor(2000)
        with torch.no_grad():
            parts = seconds(
                {"network": lambda: model(x_t, t, None), "search": lambda: bank.search(x_t, similarity.k)},  # noqa: B023
                args.repeats,
                clock,
            )
        guidances = {"plain": None, "watched": watch, "all flagged": act, "released": released}
        chains = seconds(
            {name: lambda g=g: sample(model, seeds, guidance=g, steps=args.steps) for name, g in guidances.items()},  # noqa: B023
            args.repeats,
            clock,
        )
        row = [value * 1000 / batch for value in parts.values()]
        row += [value * 1000 / batch / args.steps for value in chains.values()]
        ratios = [row[1] / row[2], row[3] / row[2]]
        cells = [str(batch)] + [f"{value:.1f}" for value in row] + [f"{ratios[0]:.1%}", f"{ratios[1]:.3f}x"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
