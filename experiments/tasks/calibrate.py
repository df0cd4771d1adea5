"""`task=calibrate`: learns λ_t from unguided trajectories of ordinary samples, for `threshold=calibrated`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amg.guidance.presets import CURVES
from amg.sampling.ordinary import calibrate
from experiments.config.build import build
from experiments.config.schema import ConfigError, RunConfig
from experiments.run import records
from experiments.run.draw import by_seed, conditions, generate, helps
from experiments.run.folder import facts, folder, in_folder
from experiments.tasks.task import Task

UNGUIDED = {"name": "none", "_target_": "amg.guidance.Guidance"}


@dataclass(frozen=True)
class Calibrate(Task):
    """Samples as a run of `guidance=none` does, learns on half of the ordinary samples and reports on the other half.

    Args:
        rate: share of ordinary trajectories that λ_t may ever flag, in (0, 1).
    """

    rate: float = 0.01

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        if not 0 < self.rate < 1:
            raise ConfigError([f"task.rate must lie in (0, 1), got {self.rate}"])
        drawn = config.model_copy(update={"output_dir": None, "guidance": UNGUIDED})
        parts = build(drawn)
        chosen = conditions(drawn, parts.world)
        run_dir = folder(drawn, parts, chosen)
        plan = by_seed(drawn, chosen)
        if helps(drawn, parts, plan, run_dir):
            return run_dir
        with in_folder(drawn, run_dir, facts(drawn, parts, chosen)) as manifest:
            generate(drawn, parts, plan, run_dir)
            manifest.write(status="done")
        rows = records.read(run_dir)
        rows = rows[rows["seed"].isin(list(plan))]
        copy = rows["similarity"] > parts.similarity.copy if parts.world.truth is None else rows["truth"]
        times, traces = (torch.tensor(np.stack(rows[name])) for name in ("trace_t", "trace_similarity"))
        times, ordinary = times[0], traces[torch.tensor(~copy.to_numpy(bool))].T
        half = ordinary.shape[1] // 2
        if half < 20:
            raise ConfigError(
                [f"n_samples={config.n_samples}: only {2 * half} ordinary trajectories; sample more to learn λ_t"]
            )
        cap = parts.similarity.copy
        found = calibrate(times, ordinary[:, :half], ordinary[:, half:], self.rate, cap)
        model, similarity = config.model["name"], config.similarity["name"]
        learned = {
            "model": model,
            "similarity": similarity,
            "sampler": config.sampler.scheduler.rsplit(".", 1)[-1],
            "command": command,
            "rate": self.rate,
            "cap": cap,
            "trajectories": {"sampled": config.n_samples, "learned on": half, "held out": ordinary.shape[1] - half},
            "flagged": {"learned": found.learned, "held out": found.held_out, "capped": found.held_out_capped},
            "times": found.threshold.times,
            "values": found.threshold.values,
        }
        file = Path(config.output_dir or CURVES) / f"{model}-{similarity}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(learned, indent=1) + "\n", encoding="utf8")
        print(
            f"{file}: learned on {half} trajectories that are no copies; of {ordinary.shape[1] - half} held out it "
            f"flags {found.held_out:.1%}, capped at the copy threshold {cap:g} {found.held_out_capped:.1%}"
        )
        return file
