"""`task=calibrate`: learns λ_t from unguided chains of ordinary samples and writes it as a config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amg.sampling.ordinary import calibrate
from experiments.config.build import build
from experiments.config.schema import ConfigError, RunConfig
from experiments.run import records
from experiments.run.draw import by_seed, conditions, generate
from experiments.run.folder import facts, folder, in_folder
from experiments.tasks.task import Task

UNGUIDED = {"name": "none", "_target_": "amg.guidance.Guidance"}
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


@dataclass(frozen=True)
class Calibrate(Task):
    """Samples as a run of `guidance=none` does, learns on half of the ordinary samples and reports on the other half.

    Args:
        rate: share of ordinary chains that λ_t may ever flag, in (0, 1).
    """

    rate: float = 0.01

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        if not 0 < self.rate < 1:
            raise ConfigError([f"task.rate must lie in (0, 1), got {self.rate}"])
        drawn = config.model_copy(update={"output_dir": None, "guidance": UNGUIDED})
        parts = build(drawn)
        chosen = conditions(drawn, parts.world)
        run_dir = folder(drawn, parts, chosen)
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # Lightning started this process to sample its share, no more
            generate(drawn, parts, by_seed(drawn, chosen), run_dir)
            return run_dir
        with in_folder(drawn, run_dir, facts(drawn, parts, chosen)) as manifest:
            generate(drawn, parts, by_seed(drawn, chosen), run_dir)
            manifest.write(status="done")
        rows = records.read(run_dir)
        rows = rows[rows["seed"].isin(list(by_seed(drawn, chosen)))]
        copy = rows["similarity"] > parts.similarity.copy if parts.world.truth is None else rows["truth"]
        times, traces = (torch.tensor(np.stack(rows[name])) for name in ("trace_t", "trace_similarity"))
        times, ordinary = times[0], traces[torch.tensor(~copy.to_numpy(bool))].T
        half = ordinary.shape[1] // 2
        if half < 20:
            raise ConfigError(
                [f"n_samples={config.n_samples}: only {2 * half} ordinary chains; draw more to learn λ_t"]
            )
        cap = parts.similarity.copy
        found = calibrate(times, ordinary[:, :half], ordinary[:, half:], self.rate, cap)
        model, similarity = config.model["name"], config.similarity["name"]
        sampler = config.sampler.scheduler.rsplit(".", 1)[-1].removesuffix("Scheduler").lower()
        file = Path(config.output_dir or CALIBRATED) / f"{model}-{similarity}-{sampler}.yaml"
        header = HEADER.format(
            model=model,
            similarity=similarity,
            sampler=sampler,
            command=f"python run.py task=calibrate model={model} similarity={similarity} "
            f"conditioning={config.conditioning} "
            f"task.rate={self.rate:g} s0={config.s0:g} {f'prompts={config.prompts} ' if config.prompts else ''}"
            f"n_samples={config.n_samples} seed={config.seed}",
            learned_n=half,
            held_n=ordinary.shape[1] - half,
            chains=config.n_samples,
            first=config.seed,
            last=config.seed + config.n_samples - 1,
            ordinary="no copy" if parts.world.truth is None else "the responsible component is no planted picture",
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
