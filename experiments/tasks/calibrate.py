"""`task=calibrate`: learns λ_t from unguided chains of ordinary samples and writes it as a config."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track

from amg.guidance import Guidance, Watch
from amg.sampling.ordinary import calibrate
from amg.thresholds import Constant
from experiments.config.build import build
from experiments.config.schema import ConfigError, RunConfig
from experiments.run.conditions import chosen_for, conditions
from experiments.run.draw import draw

CALIBRATED = Path(__file__).parents[2] / "conf" / "threshold" / "calibrated"
"""Where `threshold=calibrated/…` is looked for, whatever folder one works in."""

HEADER = """\
# λ_t for model={model}, similarity={similarity}, sampler={sampler}; learned, not published.
# {command}
# Learned on {learned_n} unguided ordinary chains of {chains} drawn (seeds {first} to {last}), held out: {held_n}.
# Ordinary: {ordinary}.
# Chains flagged at any step: {learned:.1%} learned, {held_out:.1%} held out; with λ capped at the copy
# threshold {cap}: {held_out_capped:.1%} of held-out ordinary chains.
"""


def calibrate_run(run: RunConfig, rate: float = 0.01) -> Path:
    """Draws `n_samples` unguided chains, learns on half of the ordinary ones, reports on the other half.

    Args:
        rate: share of ordinary chains that λ_t may ever flag, in (0, 1).
    """
    if not 0 < rate < 1:
        raise ConfigError([f"task.rate must lie in (0, 1), got {rate}"])
    parts = build(run)
    chosen = conditions(run, parts.world)
    watch, truth = Watch(parts.similarity, Constant(float("inf"))), parts.world.truth
    traces, copies = [], []
    seeds = range(run.seed, run.seed + run.n_samples)
    for start in track(range(0, len(seeds), run.batch_size), "unguided chains"):
        batch = list(seeds[start : start + run.batch_size])
        trace: list = []
        images = draw(
            run,
            parts,
            batch,
            chosen_for(run, chosen, batch),
            Guidance(),
            on_step=lambda step, state, trace=trace: trace.append((step.t[0], watch(step).similarity)),
        )
        times = torch.stack([t for t, _ in trace]).cpu()
        traces.append(torch.stack([similarity for _, similarity in trace]))
        alike = parts.similarity(images).value > parts.similarity.copy
        copies.append(alike if truth is None else truth.copies(images))
    ordinary = torch.cat(traces, dim=1)[:, ~torch.cat(copies)].cpu()
    half = ordinary.shape[1] // 2
    if half < 20:
        raise ConfigError([f"n_samples={run.n_samples}: only {2 * half} ordinary chains; draw more to learn λ_t"])
    cap = parts.similarity.copy
    found = calibrate(times, ordinary[:, :half], ordinary[:, half:], rate, cap)
    model, similarity = run.model["name"], run.similarity["name"]
    sampler = run.sampler.scheduler.rsplit(".", 1)[-1].removesuffix("Scheduler").lower()
    file = Path(run.output_dir or CALIBRATED) / f"{model}-{similarity}-{sampler}.yaml"
    header = HEADER.format(
        model=model,
        similarity=similarity,
        sampler=sampler,
        command=f"python run.py task=calibrate model={model} similarity={similarity} conditioning={run.conditioning} "
        f"task.rate={rate:g} s0={run.s0:g} {f'prompts={run.prompts} ' if run.prompts else ''}"
        f"n_samples={run.n_samples} seed={run.seed}",
        learned_n=half,
        held_n=ordinary.shape[1] - half,
        chains=run.n_samples,
        first=run.seed,
        last=run.seed + run.n_samples - 1,
        ordinary="no copy" if truth is None else "the responsible component is no planted picture",
        learned=found.learned,
        held_out=found.held_out,
        held_out_capped=found.held_out_capped,
        cap=cap,
    )
    lines = [f"times: [{', '.join(f'{t:.4f}' for t in found.threshold.times)}]"]
    lines += [f"values: [{', '.join(f'{v:.4f}' for v in found.threshold.values)}]"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(header + "_target_: amg.thresholds.Calibrated\n" + "\n".join(lines) + "\n", encoding="utf8")
    print(header + f"written to {file}")
    return file
