"""Statistics that `guidance=broken_memories` learns before a run's first image."""

from __future__ import annotations

from collections.abc import Callable

from amg.guidance.rivals.broken_memories import Norms
from amg.prompts import read_prompts
from amg.sampling.ordinary import learn_norms
from amg.worlds.world import World
from experiments.config.bind import locate
from experiments.config.schema import RunConfig


def of_ordinary_chains(run: RunConfig, world: World, n: int = 64, seed: int = 1_000_000) -> Callable[[], Norms]:
    """Learns the norms of n unguided trajectories that the run's own model, sampler and CFG scale draw.

    Args:
        n: trajectories, >= 2, drawn in turn from the model's ordinary prompts, or from LAION captions that Stable
            Diffusion is not known to copy where it has none, the run's labels, or no condition.
        seed: trajectory i draws from seed + i, apart from the run's own.
    """
    if n < 2:
        raise ValueError(f"guidance.norms.n must be >= 2, got {n}")
    prompts = _ordinary(run, world)

    def learn() -> Norms:
        print(f"learning the norms of {n} ordinary trajectories")
        return learn_norms(
            world.model,
            range(seed, seed + n),
            prompts and [prompts[i % len(prompts)] for i in range(n)],
            batch_size=run.batch_size,
            s0=run.s0,
            scheduler=locate(run.sampler.scheduler),
            steps=run.sampler.steps,
            eta=run.sampler.eta,
        )

    return learn


def _ordinary(run: RunConfig, world: World) -> list[str | int] | None:
    if run.conditioning == "none":
        return None
    if run.conditioning == "label":
        return list(run.labels if run.labels is not None else range(len(world.classes)))
    return world.ordinary() if world.prompts else read_prompts("ordinary_laion")
