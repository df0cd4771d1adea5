"""From a checked configuration to objects: cheap parts first, the model last."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from amg.bank import TrainingBank
from experiments.config import ConfigError, RunConfig, locate

WORLD = ("model", "data", "similarity", "judge")


@dataclass(frozen=True)
class Parts:
    """What a run needs."""

    model: Any
    bank: TrainingBank
    similarity: Any
    judge: Any
    threshold: Any
    guidance: Any
    scheduler: type
    guidance_acts: bool
    """Whether the guidance changes anything; plain sampling is only watched."""


def build(run: RunConfig) -> Parts:
    """Builds everything; a component that asks for `model`, `bank`, `similarity` or `threshold` is handed it."""
    with told("threshold"):
        threshold = component(run.threshold)
    with told("sampler"):
        scheduler = locate(run.sampler.scheduler)
    model, bank, similarity, judge = _world(device(run.trainer), *(json.dumps(getattr(run, key)) for key in WORLD))
    with told("guidance"):
        parts = {"bank": bank, "similarity": similarity, "threshold": threshold, "model": model, "run": run}
        guidance = component(run.guidance, **parts)
    acts = getattr(guidance, "terms", True) != ()
    return Parts(model, bank, similarity, judge, threshold, guidance, scheduler, acts)


@lru_cache(maxsize=1)  # the rows of a table share their model and bank, which take seconds to build
def _world(device: str, *nodes: str) -> tuple[Any, TrainingBank, Any, Any]:
    """Model, bank, similarity and judge of their nodes, which are given as JSON; on the device, where they take one."""
    parts: dict[str, Any] = {"device": device}
    for key, node in zip(WORLD, map(json.loads, nodes), strict=True):
        with told(key):
            parts["bank" if key == "data" else key] = component(node, **parts)
    return tuple(parts["bank" if key == "data" else key] for key in WORLD)


def device(trainer: dict[str, Any]) -> str:
    """Where Lightning will run this process: the accelerator that it chooses, the process's own card."""
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


def own_bank(model: Any) -> TrainingBank:
    """The training set that a model ships with."""
    if not hasattr(model, "bank"):
        raise ValueError("this model brings no training set: data=folder data.path=… or data=parquet data.path=…")
    return model.bank()


class told:
    """Turns a component's complaint about its input into one line that names the config group."""

    def __init__(self, key: str):
        self.key = key

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError)):
            text = " ".join(str(error).split())
            raise ConfigError([text if text.startswith(f"{self.key}.") else f"{self.key}: {text}"]) from None
