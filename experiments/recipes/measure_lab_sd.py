"""Measures what `lab_sd` memorizes and what full AMG makes of it; the numbers of its model card.

    python -m experiments.recipes.measure_lab_sd --planted 144 --ordinary 144                      # unguided alone
    python -m experiments.recipes.measure_lab_sd --planted 36 --ordinary 36 --c3 25 50 --level 0.9

Unconditional samples take the null caption alone (s0 = 1). With `--c3` full AMG is measured too: its threshold is
learned on unguided chains of other ordinary captions and capped at `--level` (≤ the guide's copy threshold). Copies
are counted by the guide, by the judge that gave no gradient, and by nL2; alignment is the cosine of the lab's scorer.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from amg.bank import TrainingBank
from amg.calibration import calibrate
from amg.guidance import AntiMemorizationGuidance
from amg.lab import scorer
from amg.lab.weights import weights
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import sample
from amg.similarity import NormalizedL2, PCASimilarity
from amg.similarity.lab import LabDescriptor
from amg.thresholds import Always
from experiments.recipes import lab_data

SEED, HELD_SEED = 0, 100_000


def chains(model: StableDiffusion, prompts: list[str | None], seed: int, guidance, s0: float) -> tuple[Tensor, list]:
    """Pictures (N, 3, 32, 32) and the states of every step, in batches of 36; the i-th from seed + i alone."""
    pictures, traces = [], []
    for start in range(0, len(prompts), 36):
        part = prompts[start : start + 36]
        seeds, trace = range(seed + start, seed + start + len(part)), []

        def keep(step, state, trace=trace):
            trace.append((step.t[0].item(), state))

        condition = model.encode(part)
        x0 = sample(model, seeds, condition, guidance, s0=s0 if part[0] else 1.0, on_step=keep)
        with torch.no_grad():
            pictures.append(model.decode(x0).clamp(-1, 1))
        traces.append(trace)
    return torch.cat(pictures), traces


def field(traces: list, name: str) -> Tensor:
    """One field of the states, (T, N)."""
    return torch.cat([torch.stack([getattr(state, name) for _, state in trace]) for trace in traces], 1)


def counts(pictures: Tensor, captions: list[str | None], judges: dict, score, planted: Tensor) -> dict:
    """Copies by each judge, and by each of a planted picture; mean alignment."""
    numbers = {"n": len(pictures)}
    with torch.no_grad():
        for name, judge in judges.items():
            value, index = judge(pictures)
            copies = value > judge.copy
            numbers[name] = int(copies.sum())
            numbers[f"{name}_of_planted"] = int((copies & torch.isin(index, planted)).sum())
        if captions[0]:
            numbers["alignment"] = score(pictures, captions).mean().item()
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a pipeline in diffusers' format; the shipped one if not given")
    parser.add_argument("--planted", type=int, default=144)
    parser.add_argument("--ordinary", type=int, default=144)
    parser.add_argument("--s0", type=float, default=4.0)
    parser.add_argument("--c1", type=float, default=13.0)
    parser.add_argument("--c2", type=float, default=20.0)
    parser.add_argument("--c3", type=float, nargs="*", default=[], help="strengths; none: unguided alone")
    parser.add_argument("--guide", choices=("descriptor", "pca"), default="descriptor", help="what gives the gradient")
    parser.add_argument("--raw", action="store_true", help="Eq. 17 as printed; else the gradient is normalised")
    parser.add_argument("--level", type=float, nargs="+", default=[0.9])
    parser.add_argument("--rate", type=float, default=0.02, help="share of ordinary chains that may be flagged")
    parser.add_argument("--out", type=Path, default=Path(".lab/measured_sd"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = lab_data.load()
    captions = [caption for some in data.captions for caption in some]
    repeated = data.images.repeat_interleave(torch.tensor([len(some) for some in data.captions]), 0)
    bank = TrainingBank.from_tensors(repeated, captions)
    score = scorer()
    guide = PCASimilarity(bank) if args.guide == "pca" else LabDescriptor(bank, "guide")
    judges = {"guide": guide, "judge": LabDescriptor(bank, "judge"), "nl2": NormalizedL2(bank)}
    model = StableDiffusion(args.folder or weights("lab_sd"))

    planted = [data.captions[i][0] for i in data.planted.tolist()]
    planted = (planted * -(-args.planted // len(planted)))[: args.planted]
    shuffled = data.ordinary[torch.randperm(len(data.ordinary), generator=torch.Generator().manual_seed(1))].tolist()
    ordinary = [data.captions[i][0] for i in shuffled[: args.ordinary]]
    others = [data.captions[i][0] for i in shuffled[-2 * args.ordinary :]]
    watch = AntiMemorizationGuidance(guide, Always(), terms=())
    results = {"s0": args.s0}

    pictures, traces = {}, {}
    nothing = [None] * args.ordinary
    for kind, prompts in (("planted", planted), ("ordinary", ordinary), ("unconditional", nothing)):
        pictures[kind], traces[kind] = chains(model, prompts, SEED, watch if args.c3 else None, args.s0)
        results[f"unguided_{kind}"] = counts(pictures[kind], prompts, judges, score, data.planted)
    print(json.dumps(results), flush=True)
    (args.out / "measured.json").write_text(json.dumps(results, indent=2))
    lab_data.sheet(torch.cat([some[:36] for some in pictures.values()]), args.out / "unguided.png")
    if not args.c3:
        return
    _, learned = chains(model, others, HELD_SEED, watch, args.s0)
    similarity = field(learned, "similarity")
    torch.save({"ordinary": similarity, "planted": field(traces["planted"], "similarity")}, args.out / "traces.pt")
    times = torch.tensor([t for t, _ in learned[0]])
    half = similarity.shape[1] // 2
    for level in args.level:
        found = calibrate(times, similarity[:, :half], similarity[:, half:], args.rate, level)
        for c3 in args.c3:
            start = time.perf_counter()
            guidance = AntiMemorizationGuidance(guide, found.threshold, args.c1, args.c2, c3, normalize=not args.raw)
            key, row = f"level {level} c3 {c3}", {"held_out_flagged": found.held_out_capped}
            for kind, prompts in (("planted", planted), ("ordinary", ordinary)):
                images, traces = chains(model, prompts, SEED, guidance, args.s0)
                row[kind] = counts(images, prompts, judges, score, data.planted)
                flagged = field(traces, "flagged")
                row[kind]["steps_guided"] = flagged.float().mean().item()
                row[kind]["untouched"] = (~flagged.any(0)).float().mean().item()
                if kind == "planted":
                    value, index = judges["judge"](images)
                    most = value.argsort(descending=True)[:48]
                    rows = torch.stack([images[most], data.images[index[most]]]).view(2, -1, 12, 3, 32, 32)
                    beside = rows.transpose(0, 1).flatten(0, 2)  # a row of pictures over a row of their nearest
                    lab_data.sheet(beside, args.out / f"guided_{level}_{c3}.png")
            row["seconds"] = time.perf_counter() - start
            results[key] = row
            print(key, json.dumps(row), flush=True)
            (args.out / "measured.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
