"""Cost that AMG adds to a CIFAR-10 sampling step: time per image of network, search and guidance.

    python -m benchmarks.bench_cifar                                 # 50,000 random images
    python -m benchmarks.bench_cifar --data data/cifar10             # the real training set

The network has the true size of iDDPM and random weights, which go through the converter as a checkpoint under
improved-diffusion's names; its time does not depend on them. `search` is exact, `watched` flags nothing, `guidance` is
what flagging every image adds to a plain step, search included. Budgets: exact search at most 5 % of a step at batch
64, guidance that flags nothing at most 5 % in all.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import torch

from amg import TrainingBank, sample
from amg.bank.cifar10 import read_cifar10
from amg.guidance import AntiMemorizationGuidance
from amg.guidance.rivals.released_iddpm import ReleasedIDDPM
from amg.models.ddpm import DDPM
from amg.models.iddpm import convert, restore, unet
from amg.similarity import NormalizedL2
from amg.thresholds import Always, Constant
from benchmarks.timing import seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Parquet file or folder, or torchvision's root; random images where not given")
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--steps", type=int, default=2, help="sampling steps per trajectory that is timed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help="channels; 128 is the true size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wall", action="store_true", help="wall-clock time; default is CPU time, blind to neighbours")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time

    if args.data:
        images = read_cifar10(args.data)[0][: args.pictures]
    else:
        images = torch.rand(args.pictures, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bank = TrainingBank.from_tensors(images)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        torch.save(restore(unet(args.width)), checkpoint)
        model = DDPM(convert(checkpoint, Path(folder) / "converted"))
    similarity = NormalizedL2(bank)
    watch = AntiMemorizationGuidance(similarity, Constant(float("inf")), c3=1.0)
    act = AntiMemorizationGuidance(similarity, Always(), c3=1e-6, terms=("sim",))
    released = ReleasedIDDPM(bank, arm=0.0)  # measures at every step, guides at none

    weights = sum(p.numel() for p in model.network.parameters()) / 1e6
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} thread(s), torch {torch.__version__}, ", end=""
    )
    print(f"{len(bank):,} {'training' if args.data else 'random'} images, network of {weights:.1f} M weights")
    print(f"{'wall' if args.wall else 'CPU'} milliseconds per image and step, median of {args.repeats}\n")
    head = [
        "batch",
        "network",
        "search",
        "plain step",
        "watched",
        "all flagged",
        "guidance",
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
        plain, watched, flagged, authors = (value * 1000 / batch / args.steps for value in chains.values())
        row += [plain, watched, flagged, flagged - plain, authors]
        ratios = [row[1] / plain, watched / plain]
        cells = [str(batch)] + [f"{value:.1f}" for value in row] + [f"{ratios[0]:.1%}", f"{ratios[1]:.3f}x"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
