"""Growth of the cost of a guarded sample with samples, batch and bank; draws docs/images/cost.svg.

    python -m benchmarks.bench_growth --plot docs/images/cost.svg
    python -m benchmarks.bench_growth --guided 1000 100000         # embeds the larger bank: two minutes

Samples and batches are of lab_sd under guidance=full on planted prompts. Banks are random unit vectors of 512 numbers,
searched exactly, 16 queries at once. `--guided` compares guided steps of lab_sd at batch 16 under `lab_guide` on banks
of so many noised training images, searched as `index=auto` does.
"""

from __future__ import annotations

import argparse
import time
from itertools import cycle, islice

import torch
import torch.nn.functional as F

from amg import TrainingBank, sample
from amg.bank.exact import ExactIndex
from amg.guidance import AntiMemorizationGuidance
from amg.guidance.presets import constants, threshold
from amg.sampling.decoders import decoder_of
from amg.similarity import PixelCorrelation, Similarity
from amg.worlds.lab import LabDescriptor, LabStableDiffusion
from benchmarks.timing import seconds
from experiments.report.style import style


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--banks", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--guided", type=int, nargs="*", default=[], help="images of the banks of guided steps")
    parser.add_argument("--plot", help="file of the figure; none where not given")
    args = parser.parse_args(arguments)
    model = LabStableDiffusion()
    world = model.world()
    guidance = amg(PixelCorrelation(world.bank), "correlation")
    decoder = decoder_of(model.pipe, "auto", world.bank)
    planted = [prompt for prompt in world.prompts if world.cause(prompt) != "ordinary"]

    def draw(count: int, batch: int, guidance: AntiMemorizationGuidance = guidance) -> None:
        prompts = list(islice(cycle(planted), count))
        for start in range(0, count, batch):
            seeds = range(start, min(start + batch, count))
            some = [prompts[i] for i in seeds]
            sample(model, seeds, guidance=guidance, prompts=some, s0=4.0, steps=args.steps, decoder=decoder)

    def timed(actions: dict) -> dict:
        return seconds(actions, args.repeats, time.process_time)

    if args.guided:
        ways = {n: guided_by(noised(world.bank.pictures[:], n)) for n in args.guided}
        took = timed({n: lambda way=way: draw(16, 16, way) for n, way in ways.items()})
        first = took[args.guided[0]]
        for n, seconds_of in took.items():
            print(
                f"bank of {n:,}: {seconds_of * 1000 / args.steps:.1f} ms a step of 16, {seconds_of / first:.3f} times"
            )
        return
    most = max(args.batches)
    samples = timed({n: lambda n=n: draw(n, min(args.samples)) for n in args.samples})
    batches = {n: took / most for n, took in timed({n: lambda n=n: draw(most, n) for n in args.batches}).items()}
    queries, banks = F.normalize(torch.randn(16, 512), dim=1), {}
    for n in args.banks:
        index = ExactIndex(F.normalize(torch.randn(n, 512), dim=1))
        banks |= timed({n: lambda: index.search(queries)})  # noqa: B023
    panels = {
        "samples, seconds": samples,
        "samples in a batch, ms per sample and step": {n: took * 1000 / args.steps for n, took in batches.items()},
        "images in the bank, ms per search of 16": {n: took * 1000 for n, took in banks.items()},
    }
    for name, values in panels.items():
        print(f"| {name} | " + " | ".join(f"{n:,}: {value:.3g}" for n, value in values.items()) + " |")
    if args.plot:
        plot(panels, args.plot)


def noised(images: torch.Tensor, n: int) -> torch.Tensor:
    """Training images again and again, each with its own noise, (n, 3, H, W) uint8."""
    again = images[torch.arange(n) % len(images)]
    again = again + 0.1 * torch.randn(again.shape, generator=torch.Generator().manual_seed(0))
    return ((again.clamp(-1, 1) + 1) * 127.5).round().byte()


def guided_by(images: torch.Tensor) -> AntiMemorizationGuidance:
    """AMG by the lab's descriptor on a bank of these images, with its vectors and index made."""
    similarity = LabDescriptor(TrainingBank.from_tensors(images, [f"image {i}" for i in range(len(images))]))
    similarity(images[:1].float() / 127.5 - 1)
    return amg(similarity, "lab_guide")


def amg(similarity: Similarity, name: str) -> AntiMemorizationGuidance:
    """AMG with the constants of lab_sd and a similarity."""
    chosen = constants("lab_sd", name)
    strengths = {key: getattr(chosen, key) for key in ("c1", "c2", "c3", "normalize", "margin")}
    return AntiMemorizationGuidance(similarity, threshold("lab_sd", name), **strengths)


def plot(panels: dict[str, dict[int, float]], file: str) -> None:
    """Draws each panel; one that spans more than a factor of 100 has logarithmic axes."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(panels), figsize=(9, 2.6), layout="constrained")
        for axis, (name, values) in zip(axes, panels.items(), strict=True):
            what, unit = name.split(", ")
            axis.plot(list(values), list(values.values()), "o-")
            axis.set(xlabel=what, ylabel=unit)
            if max(values) > 100 * min(values):
                axis.loglog()
            else:
                axis.set(xticks=list(values), ylim=(0, None))
        figure.savefig(file)


if __name__ == "__main__":
    main()
