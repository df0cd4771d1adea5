"""Measures on one of the lab's networks what the tiny decoder and rests between looks miss.

    python -m experiments.recipes.lab.measure_looks lab_sd --guided 504 --unguided 1500

On guided trajectories of the VAE and looks at every step: the share of flagged steps that the tiny decoder's σ_t flags
too, and the share of the others that it flags. On unguided trajectories of planted captions that end in copies: the
share that `looks=adaptive` flags later than looks at every step. The seeds must be others than those of
`task=calibrate`. Images are compared by two runs:

    python run.py -m model=lab_sd guidance=full n_samples=1008 seed=3000 decoder=vae looks=every,adaptive name=speed
    python run.py model=lab_sd guidance=full n_samples=1008 seed=3000 decoder=tiny looks=adaptive name=speed
"""

import argparse
import json
from itertools import cycle, islice
from typing import Any

import torch

from amg.guidance import Guidance
from amg.guidance.looks import Looks, late
from amg.metrics.values import Share
from amg.sampling import sample
from amg.sampling.decoders import decoder_of
from amg.similarity.base import measure
from amg.step import Step
from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.build import build


class Probe:
    """σ_t by a decoder at each step, beside what the guidance saw."""

    def __init__(self, similarity: Any, decoder: Any):
        self.similarity, self.decoder = similarity, decoder
        self.t: list[float] = []
        self.seen: list[torch.Tensor] = []
        self.lam: list[torch.Tensor] = []
        self.flagged: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, step: Step, state: Any) -> None:
        self.t.append(step.t[0].item())
        self.seen.append(measure(self.similarity, self.decoder(step.x0)).value)
        if state is not None:
            self.lam.append(state.lam)
            self.flagged.append(state.flagged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--guided", type=int, default=504, help="samples of all captions")
    parser.add_argument("--unguided", type=int, default=1504, help="samples of planted captions")
    parser.add_argument("--seed", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    run = check(compose_config([f"model={args.model}", "guidance=full", "decoder=tiny", "looks=adaptive"]))
    parts = build(run)
    looks, guidance = Looks(**run.looks), parts.guidance.looking(None)
    pipe = getattr(parts.model, "pipe", None) or parts.model.pipeline
    options = {"s0": run.s0, "scheduler": parts.scheduler, "steps": run.sampler.steps, "eta": run.sampler.eta}
    prompts = parts.world.prompts
    planted = [prompt for prompt in prompts if parts.world.cause(prompt) != "ordinary"]
    full, told = decoder_of(pipe, "vae"), {}

    def draw(prompts: list[str], i: int, n: int, guidance: Guidance) -> tuple[Probe, torch.Tensor]:
        """Samples n images from the i-th seed on; what the tiny decoder shows of them, and x̂0 of the last step."""
        probe, some = Probe(parts.similarity, parts.decoder), list(islice(cycle(prompts), i, i + n))
        seeds = range(args.seed + i, args.seed + i + n)
        x0 = sample(parts.model, seeds, guidance=guidance, prompts=some, decoder=full, on_step=probe, **options)
        return probe, x0

    def count(name: str, which: torch.Tensor, among: torch.Tensor) -> None:
        told[name] = told.get(name, Share(0, 0)) + Share(int((which & among).sum()), int(among.sum()))

    for start in range(0, args.guided, args.batch):
        probe, _ = draw(prompts, start, min(args.batch, args.guided - start), guidance)
        flagged, tiny = torch.stack(probe.flagged), torch.stack(probe.seen) > torch.stack(probe.lam)
        count("flagged steps flagged by tiny", tiny, flagged)
        count("other steps flagged by tiny", tiny, ~flagged)
    for start in range(0, args.unguided, args.batch):
        probe, x0 = draw(planted, start, min(args.batch, args.unguided - start), Guidance())
        copied = parts.similarity(parts.model.decode(x0).clamp(-1, 1)).value > parts.similarity.copy
        times = torch.tensor(probe.t)
        found = late(looks, times, (parts.threshold(times)[:, None] - torch.stack(probe.seen))[:, copied])
        count("copies flagged late", found, torch.ones_like(found))
        print(start + len(x0), {name: str(share) for name, share in told.items()}, flush=True)
    print(json.dumps({name: [share.count, share.n, *share.interval] for name, share in told.items()}))


if __name__ == "__main__":
    main()
