"""`task=calibrate`: learns λ_t from unguided trajectories of ordinary samples, for `threshold=calibrated`.

With `task.copied=planted`, or another set of memorized prompts, it learns `looks=adaptive` too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amg.guidance.looks import learn
from amg.guidance.presets import CURVES
from amg.sampling.ordinary import calibrate
from experiments.config.build import Parts, build
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
        copied: prompts of memorized images, as `prompts` names them. Their trajectories and the ordinary ones teach how
            long a sample may rest between looks; None learns λ_t alone.
        n_copied: samples of those prompts, whose seeds follow the others'.
        late: share of copied trajectories that those rests may flag later than looks at every step, in (0, 1).
    """

    builds = True

    rate: float = 0.01
    copied: str | None = None
    n_copied: int = 2000
    late: float = 0.005

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        for name in ("rate", "late"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError([f"task.{name} must lie in (0, 1), got {getattr(self, name)}"])
        unguided = {"output_dir": None, "guidance": UNGUIDED, "looks": "every"}
        drawn = config.model_copy(update=unguided)
        parts = build(drawn)
        times, traces, copy = self.trajectories(drawn, parts)
        ordinary = traces[:, ~copy]
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
        told = ""
        if self.copied is not None:
            again = {"prompt": None, "prompts": self.copied, "n_samples": self.n_copied, "seed": drawn.seeds.stop}
            _, memorized, copied = self.trajectories(drawn.model_copy(update=again), parts)
            lam = found.threshold(times)[:, None]
            gaps = lam - torch.cat([traces, memorized], dim=1)
            try:
                looks, facts_of = learn(times, gaps, torch.cat([copy, copied]), learned["sampler"], self.late)
            except ValueError as error:
                raise ConfigError([f"task.n_copied={self.n_copied}, task.copied={self.copied}: {error}"]) from None
            names = ("spans", "gaps", "last", "rate")
            learned["looks"] = {"copied": self.copied, **facts_of, **{name: getattr(looks, name) for name in names}}
            told = f"; ordinary samples are looked at in {facts_of['looks unflagged']:.0%} of their steps"
        file = Path(config.output_dir or CURVES) / f"{model}-{similarity}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in learned.items())
        file.write_text(f"{{\n{lines}\n}}\n", encoding="utf8")
        print(
            f"{file}: learned on {half} trajectories that are no copies; of {ordinary.shape[1] - half} held out it "
            f"flags {found.held_out:.1%}, capped at the copy threshold {cap:g} {found.held_out_capped:.1%}{told}"
        )
        return file

    @staticmethod
    def trajectories(drawn: RunConfig, parts: Parts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draws what is missing; t of the steps, (T,), falling, σ_t, (T, n), and which ends in a copy, (n,) bool."""
        chosen = conditions(drawn, parts.world)
        run_dir, plan = folder(drawn, parts, chosen), by_seed(drawn, chosen)
        if not set(plan) <= records.seeds_done(run_dir) and helps(drawn, parts, plan, run_dir):
            raise SystemExit(0)  # a process that Lightning started for these samples alone
        with in_folder(drawn, run_dir, facts(drawn, parts, chosen)) as manifest:
            generate(drawn, parts, plan, run_dir)
            manifest.write(status="done")
        rows = records.read(run_dir)
        rows = rows[rows["seed"].isin(list(plan))]
        copy = rows["similarity"] > parts.similarity.copy if parts.world.truth is None else rows["truth"]
        times, traces = (torch.tensor(np.stack(rows[name])) for name in ("trace_t", "trace_similarity"))
        return times[0], traces.T, torch.tensor(copy.to_numpy(bool))
