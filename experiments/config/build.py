"""From a checked configuration to objects: looks for all files first, then builds, the model last."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from amg.bank import TrainingBank
from amg.guidance.looks import Looks
from amg.schedule import one_call, own_scheduler
from amg.worlds.world import World, of
from experiments.config.bind import COMPONENTS, PREFIXES, every, locate
from experiments.config.schema import ConfigError, MetricsConfig, RunConfig

WORLD = ("model", "data", "similarity", "judge")
"""Components that a table's rows share."""


@dataclass(frozen=True)
class Parts:
    """Components of a run."""

    world: World
    """Its bank is that of `data`."""
    similarity: Any
    judge: Any
    threshold: Any
    guidance: Any
    scheduler: type
    decoder: Any = None
    """Decodes x̂0 for the guidance; None for a model that is no pipeline of diffusers: its own."""
    looks: Any = None
    """Rests between looks at a sample; None looks at every step."""

    @property
    def model(self) -> Any:
        return self.world.model

    @property
    def bank(self) -> TrainingBank:
        return self.world.bank


def build(run: RunConfig, measures: bool = False) -> Parts:
    """Builds everything; a component receives `world`, `model`, `bank`, `similarity` or `threshold` if it takes it.

    Args:
        measures: looks first for what the run's metrics need, too.
    """
    find_files(run, measures)
    with told("threshold"):
        threshold = component(run.threshold)
    scheduler = scheduler_of(run)
    world, similarity, judge = _world(device(run.trainer), *(json.dumps(getattr(run, key)) for key in WORLD))
    with told("sampler.scheduler"):
        own_scheduler(world.model, scheduler, run.sampler.steps)  # refused before anything is drawn
    with told("guidance"):
        looks = None if run.looks == "every" else Looks(**run.looks)
        parts = {"similarity": similarity, "threshold": threshold, "looks": looks, "run": run}
        guidance = component(run.guidance, world=world, model=world.model, bank=world.bank, **parts)
    same_size(run, world, {"similarity": similarity, "judge": judge, "guidance": guidance})
    with told("decoder"):
        decoder = decoder_for(world, run)
    return Parts(world, similarity, judge, threshold, guidance, scheduler, decoder, looks)


def decoder_for(world: World, run: RunConfig) -> Any:
    """Builds the decoder of x̂0 for the guidance; None for the model's own."""
    from amg.sampling.decoders import decoder_of

    pipe = getattr(world.model, "pipe", None) or world.model.pipeline
    if pipe is None:
        if run.decoder in ("tiny", "linear"):
            raise ValueError(f"decoder={run.decoder}: model={run.model.get('name')} has no latents; leave decoder out")
        return None
    return decoder_of(pipe, run.decoder, world.bank)


def scheduler_of(run: RunConfig) -> type:
    """The class of `sampler.scheduler`.

    Raises:
        ConfigError: where it is no scheduler, or one that calls the network more than once a step.
    """
    key = f"sampler.scheduler={run.sampler.scheduler}"
    if not run.sampler.scheduler.startswith((*PREFIXES, *run.allow)):
        raise ConfigError([f"{key}: must begin with {', '.join((*PREFIXES, *run.allow))}, as diffusers.DDIMScheduler"])
    with told("sampler.scheduler"):
        try:
            found = locate(run.sampler.scheduler)
        except AttributeError:
            raise ValueError(f"{run.sampler.scheduler} is not there, as diffusers.DDIMScheduler is") from None
        if not all(hasattr(found, name) for name in ("from_config", "set_timesteps", "step")):
            raise ValueError(f"{run.sampler.scheduler} is no scheduler, as diffusers.DDIMScheduler is")
        one_call(found)
    return found


def same_size(run: RunConfig, world: World, parts: dict[str, Any]) -> None:
    """Compares the resolution of the model's images with the bank's.

    Args:
        parts: by their keys; only those that say `compares_pixels` need both to be the same.
    Raises:
        ConfigError: where a part cannot compare them.
    """
    side = world.model.side
    key = next((key for key, part in parts.items() if getattr(part, "compares_pixels", False)), None)
    if side is None or key is None:
        return
    with told("data"):
        height, width = world.bank.shape[1:]
    if (height, width) == (side, side):
        return
    name, drawn = run.model.get("name"), f"{side}×{side}"
    raise ConfigError(
        [f"model: {name} draws images of {drawn}, the bank's are {height}×{width}, and "
         f"{key}={getattr(run, key).get('name')} compares pixels; take a network of that size, or images of {drawn} "
         f"(data=folder data.path=… data.size={side})"]
    )  # fmt: skip


def declared(run: RunConfig, name: str, groups: Sequence[str] = WORLD) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields the key of each component that declares a function `name`, itself or by its module, bound to its keys."""
    for key, node in (found for group in groups for found in every(group, getattr(run, group))):
        target = locate(node["_target_"])
        own = getattr(target, name, None) or getattr(inspect.getmodule(target), name, None)
        if own is not None:
            takes = inspect.signature(own).parameters
            yield key, partial(own, **{part: value for part, value in node.items() if part in takes})


def find_files(run: RunConfig, measures: bool = False) -> None:
    """Looks for the files of all components before any is loaded.

    A component says by its `find`, a function of its own keys, what it misses; else its module does.

    Args:
        measures: looks for those of the run's metrics and its logger, too.
    Raises:
        ConfigError: with all that is missing, one line each.
    """
    lines: list[str] = []
    groups = (*WORLD, "logger") if measures else WORLD
    for key, find in declared(run, "find", groups):
        try:
            with told(key):
                find()
        except ConfigError as error:
            lines += [f"{line}; similarity@judge=nl2 needs no file" if key == "judge" else line for line in error.lines]
    lines += missing(run.metrics) if measures else []
    if lines:
        raise ConfigError(lines)


@lru_cache(maxsize=1)  # the rows of a table share their model and bank, which take seconds to build
def _world(device: str, *nodes: str) -> tuple[World, Any, Any]:
    """World, similarity and judge of their nodes, which are given as JSON; on the device, where they take one."""
    model, data, similarity, judge = map(json.loads, nodes)
    with told("model"):
        world = of(component(model, device=device))
    with told("data"):
        world = replace(world, bank=component(data, world=world, model=world.model, device=device))
    parts = {"model": world.model, "bank": world.bank, "device": device}
    with told("similarity"):
        similarity = component(similarity, **parts)
    with told("judge"):
        return world, similarity, component(judge, similarity=similarity, **parts)


def bank_of(run: RunConfig, **keys: Any) -> TrainingBank:
    """Returns the training images only; the model is built only if they come with it.

    Args:
        keys: of the data's `_target_`, set where it takes them.
    """
    takes = inspect.signature(locate(run.data["_target_"])).parameters
    node = run.data | {name: value for name, value in keys.items() if name in takes}
    with told("data"):
        if {"model", "world"} & set(takes):
            world = of(component(run.model, device=device(run.trainer)))
            return component(node, world=world, model=world.model)
        return component(node)


def device(trainer: dict[str, Any]) -> str:
    """Returns the device of this process: the accelerator that Lightning chooses, the process's own card."""
    import torch

    accelerator = trainer.get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def component(node: dict[str, Any], **parts: Any) -> Any:
    """Calls a node's `_target_` with its keys; `name` is a label, nested nodes are built first."""
    target = locate(node["_target_"])
    wanted = inspect.signature(target).parameters
    arguments = {name: value for name, value in parts.items() if name in wanted}
    for name, value in node.items():
        if name in ("_target_", "name"):
            continue
        if isinstance(value, dict) and "_target_" in value:
            value = component(value, **parts)
        elif isinstance(value, list) and value and all(isinstance(v, dict) and "_target_" in v for v in value):
            value = [component(v, **parts) for v in value]
        elif name == "dtype" and isinstance(value, str):
            value = dtype(value)
        arguments[name] = value
    return target(**arguments)


def dtype(name: str) -> Any:
    """torch's floating type of that name."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={name}: choose float32, float64, float16 or bfloat16")
    return found


def own_bank(world: World) -> TrainingBank:
    """The training set that a model ships with."""
    if world.bank is None:
        raise ValueError("this model brings no training set: data=folder data.path=…")
    return world.bank


COMMANDS = {
    "name a folder of images with captions": "name a folder of images with captions (data=folder data.path=…); "
    "`python run.py task=download` fetches those of the memorized prompts into data/memorized_laion; "
    "model=closed_form and model=lab_sd bring their own",
    "TrainingBank.build": "`python run.py task=bank task.out=…`",
    "ClosedForm() needs no files": "model=closed_form runs now and needs no files",
    "amg.similarity.sscd_file.fetch": "`python run.py task=download_sscd` with this run's keys of model, similarity "
    "and judge",
    "bank.embed": "`python run.py task=bank` with this run's data and similarity",
}
"""Commands for functions that a library's errors name."""


class told:
    """Turns a component's complaint about its input into one line that names the config group."""

    def __init__(self, key: str):
        self.key = key

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError, ImportError)):
            text = " ".join(str(error).split())
            for call, command in COMMANDS.items():
                text = text.replace(call, command)
            if self.key.startswith(
                ("similarity", "judge")
            ):  # a class does not know where in the configuration it stands
                text = re.sub(r"(?<![\w.])similarity\.", f"{self.key}.", text)
            named = text.startswith(tuple(f"{key}." for key in COMPONENTS))
            raise ConfigError([text if named else f"{self.key}: {text}"]) from None


EXTRACTORS = ("efficientnet_lite0", "inception", "none")


def missing(metrics: MetricsConfig) -> list[str]:
    """Lists the keys of `metrics` that name a missing file, one line each."""
    lines = []
    for key, look in (("extractor", _extractor), ("reference", _reference), ("scorer", _scorer)):
        try:
            look(metrics)
        except (ValueError, FileNotFoundError) as error:
            lines.append(complaint(metrics, key, error))
    return lines


def complaint(metrics: MetricsConfig, key: str, error: Exception) -> str:
    """An error as a line that names the key of `metrics`, and no other."""
    return f"metrics.{key}={getattr(metrics, key)}: {str(error).removeprefix('data.path: ')}"


def _extractor(metrics: MetricsConfig) -> None:
    if metrics.extractor not in EXTRACTORS:
        raise ValueError(f"choose {', '.join(EXTRACTORS[:-1])} or {EXTRACTORS[-1]}")
    if metrics.extractor == "inception":
        from amg.metrics.extractors import inception_file

        inception_file()
    if metrics.extractor == "efficientnet_lite0":
        from amg.metrics.efficientnet import weights_file

        weights_file()


def _reference(metrics: MetricsConfig) -> None:
    if metrics.extractor == "none" or metrics.reference == "bank":
        return
    from amg.bank.sources.folder import pictures_in

    pictures_in(Path(metrics.reference))


def _scorer(metrics: MetricsConfig) -> None:
    """A name of the hub is no path: where its weights are not on disk, a table says so."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    folder = Path(metrics.scorer)
    if metrics.scorer in ("lab", "clip", "none"):
        return
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError("that folder holds no CLIP in transformers' format: config.json is missing")
    try:
        validate_repo_id(metrics.scorer)
    except HFValidationError:
        if not folder.is_dir():
            raise FileNotFoundError("no such folder; lab, clip, a folder or hub name of a CLIP, or none") from None
