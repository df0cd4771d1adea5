"""Cost that AMG adds to a step of the closed-form world, and how far float32 drifts with the batch.

    python -m benchmarks.bench_closed_form

The exact denoiser is itself a search over components, so the search of a similarity weighs more here than beside a
network of true size (bench_cifar.py).
"""

from __future__ import annotations

import argparse
import time

import torch

from amg import sample
from amg.guidance import AntiMemorizationGuidance
from amg.similarity import NormalizedL2, PCASimilarity
from amg.thresholds import Always, Constant
from amg.worlds.closed_form import ClosedForm
from benchmarks.timing import seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="sampling steps per trajectory that is timed")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = ClosedForm()
    bank = model.world().bank
    x_t, t, seeds = torch.randn(args.batch, *model.shape), torch.tensor(500), list(range(args.batch))
    prompts = (model.world().prompts * args.batch)[: args.batch]
    print(f"CPU milliseconds per image and step at batch {args.batch}, median of {args.repeats}; ratios to plain\n")
    print("| similarity | denoiser | similarity | plain step (CFG) | watched | all flagged | watched/plain |")
    print("|" + " --- |" * 7)
    for name, similarity in {"pca": PCASimilarity(bank), "nl2": NormalizedL2(bank)}.items():
        watch = AntiMemorizationGuidance(similarity, Constant(float("inf")), 13, 20, 5)
        act = AntiMemorizationGuidance(similarity, Always(), 13, 20, 5, normalize=True)

        def chain(guidance, count=args.steps):
            sample(model, seeds, guidance=guidance, prompts=prompts, s0=3.0, steps=count)

        with torch.no_grad():
            times = seconds(
                {
                    "denoiser": lambda: model(x_t, t, None),
                    "similarity": lambda s=similarity: s(x_t),
                    "plain": lambda: chain(None),
                    "watched": lambda g=watch: chain(g),
                    "act": lambda g=act: chain(g),
                },
                args.repeats,
                time.process_time,
            )
        per = [times["denoiser"], times["similarity"], *(times[k] / args.steps for k in ("plain", "watched", "act"))]
        cells = [f"{value * 1000 / args.batch:.2f}" for value in per]
        print(f"| {name} | " + " | ".join(cells) + f" | {times['watched'] / times['plain']:.3f}x |")
    drift(model, prompts)


def drift(model: ClosedForm, prompts: list[str]) -> None:
    """The same seeds alone and in one batch: float32 rounds products differently, and trajectories amplify it."""
    some = list(range(16))
    guidance = AntiMemorizationGuidance(PCASimilarity(model.world().bank), Constant(0.85), 13, 20, 5, normalize=True)

    def draw(seeds: list[int]) -> torch.Tensor:
        return sample(model, seeds, guidance=guidance, prompts=[prompts[i] for i in seeds], s0=3.0, steps=150)

    apart = torch.cat([draw([seed]) for seed in some])
    worst = (draw(some) - apart).abs().flatten(1).amax(1)
    print(
        "\nfloat32, 16 guided trajectories of 150 steps, in one batch against one by one: largest difference of a pixel"
    )
    print(f"median {worst.median():.1e}, worst {worst.max():.1e} (of a range of 2)")


if __name__ == "__main__":
    main()
