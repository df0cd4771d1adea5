"""Which prompt or label each sample takes."""

from __future__ import annotations

from collections.abc import Sequence

from amg.worlds.world import World
from experiments.config.schema import ConfigError, RunConfig


def conditions(run: RunConfig, world: World) -> list[str | int] | None:
    """The P prompts or labels of a run; sample i takes number i mod P. None for unconditional sampling."""
    if run.conditioning == "none":
        return None
    if run.conditioning == "label":
        if not world.classes:
            raise ConfigError([f"conditioning=label: model={run.model.get('name')} knows no classes"])
        chosen: list[str | int] = list(run.labels if run.labels is not None else range(len(world.classes)))
    elif run.prompt is not None:
        chosen = [run.prompt] if isinstance(run.prompt, str) else list(run.prompt)
    else:
        chosen = _prompt_set(run, world)
    if not chosen:
        raise ConfigError(["labels, prompt or prompts: an empty list; give at least one"])
    try:
        world.model.check(chosen)  # raises with the model's own words, before anything is sampled
    except ValueError as error:
        raise ConfigError([f"{'labels' if run.conditioning == 'label' else 'prompt'}: {error}"]) from None
    return chosen


def by_seed(run: RunConfig, chosen: Sequence[str | int] | None) -> dict[int, str | int | None]:
    """Returns the prompt or label of each of the run's seeds; None for unconditional sampling."""
    return {run.seed + i: None if chosen is None else chosen[i % len(chosen)] for i in range(run.n_samples)}


def _prompt_set(run: RunConfig, world: World) -> list[str | int]:
    if run.prompts in (None, "planted", "ordinary"):
        if not world.prompts:
            raise ConfigError(
                [f"prompt: model={run.model.get('name')} has no default prompts; give prompt= or prompts="]
            )
        if run.prompts is None:
            return list(world.prompts)
        return [p for p in world.prompts if (world.cause(p) == "ordinary") == (run.prompts == "ordinary")]
    from amg.prompts import read_prompts

    try:
        return read_prompts(run.prompts)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([f"prompts: {error}"]) from None
