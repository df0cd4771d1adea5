"""The checks of a configuration that need no weights: every mistake is told at once, one line each."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.messages import SEVERAL, did_you_mean, needed, unresolved
from experiments.config.scalars import expected, shown
from experiments.config.schema import ConfigError, NotApplicable, RunConfig, validate

PREFIXES = ("amg.", "experiments.", "lightning.", "diffusers.", "torchmetrics.")
COMPONENTS = ("data", "guidance", "judge", "logger", "model", "similarity", "task", "threshold", "trainer")
PROVIDED = {
    "bank",
    "model",
    "world",
    "similarity",
    "threshold",
    "run",
    "run_dir",
    "metrics",
    "jobs",
    "training",
    "command",
    "device",
    "looks",
}  # handed to components that ask for them by name
PATHS = (
    *("addresses", "cache", "default_root_dir", "ordinary", "output_dir", "path", "prompts", "reference", "root"),
    *("runs", "scorer", "source", "out", "query", "hashes"),
)
"""Last parts of the keys that hold a path, or may hold one."""


def check(cfg: DictConfig, bind: bool = True) -> RunConfig:
    """Validates run-level keys, then binds every component's keys to its signature.

    Args:
        bind: False stops after what is known without importing a component, which takes seconds.

    Raises:
        ConfigError: with all mistakes.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError([needed(key) for key in missing])
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None
    plain.pop("hydra", None)
    for alone in ("experiment", "names", "table_samples", "sscd", "sscd_norm"):  # chooses, or is referred to
        plain.pop(alone, None)
    plain["guidance"] = _listed(plain["guidance"])
    run = validate(at_home(plain))
    allowed = (*PREFIXES, *run.allow)
    lines = [line for key, node in _nodes(run).items() if (line := _bad_target(key, node, allowed))]
    if not lines and bind:  # nothing is imported while a target is not to be trusted
        run = expand_presets(run)
        nodes = _nodes(run)
        for key in sorted(nodes, key="trainer".__eq__):  # Lightning, which is slow, last
            lines += [] if lines and key == "trainer" else _mistakes(key, nodes[key], allowed)
    if lines:
        raise ConfigError(lines)
    return run


def at_home(node: Any, key: str = "") -> Any:
    """A configuration whose paths have the home folder in the place of a leading ~, which no shell puts after a =."""
    if isinstance(node, dict):
        return {name: at_home(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [at_home(value, key) for value in node]
    return os.path.expanduser(node) if key in PATHS and isinstance(node, str) else node


GIVEN = {"constant": ("Constant", {"value"}), "parabolic": ("Parabolic", {"start", "end"})}
"""Thresholds that need no table where all their keys are given."""


def _threshold(node: dict[str, Any], model: str, similarity: str, strength: str, of: str) -> dict[str, Any]:
    """Returns the threshold that `preset:` stands for, as a node; keys of `node` win."""
    from dataclasses import asdict

    from amg.guidance import presets

    kind = node["preset"]
    given = {key: value for key, value in node.items() if key != "preset"}
    if kind in GIVEN and GIVEN[kind][1] <= given.keys():
        return {"_target_": f"amg.thresholds.{GIVEN[kind][0]}"} | given
    try:
        chosen = presets.threshold(model, similarity, strength, kind)
    except FileNotFoundError:
        raise NotApplicable(
            [f"threshold={kind}: no curve was learned for {of}; python run.py task=calibrate … learns one"]
        ) from None
    except KeyError:
        raise ConfigError(
            [f"threshold={kind}: no constants for {of}; choose another similarity, or threshold=constant "
             "threshold.value=…"]
        ) from None  # fmt: skip
    return {"_target_": f"amg.thresholds.{type(chosen).__name__}"} | asdict(chosen) | given


def _strong(node: dict[str, Any], model: str, similarity: str, of: str) -> dict[str, Any] | None:
    """Returns the node of a guidance with the strong constants and their λ_t; None if the table has none."""
    from amg.guidance import presets

    try:
        chosen = presets.constants(model, similarity, "strong")
    except KeyError:
        return None
    names = ("c1", "c2", "c3", "normalize", "margin")
    given = {key: value for key, value in node.items() if key not in ("preset", "threshold")}
    constants = {name: getattr(chosen, name) for name in names} | given
    return constants | {"threshold": _threshold({"preset": "preset"}, model, similarity, "strong", of)}


def _nodes(run: RunConfig) -> dict[str, dict[str, Any]]:
    nodes = {key: getattr(run, key) for key in COMPONENTS}
    return nodes | {f"{key}.{name}": node for key in SEVERAL for name, node in getattr(run, key).items()}


def expand_presets(run: RunConfig) -> RunConfig:
    """Writes the constants that `preset:` keys stand for into the guidances and the threshold.

    A run is known by its values, so that another table of constants is another run.

    Raises:
        ConfigError: if the table has no constants for the model and similarity.
        NotApplicable: if no curve was learned for them.
    """

    from amg.guidance import presets

    plain = run.model_dump()
    model, similarity = (plain[key].get("name") for key in ("model", "similarity"))
    of = f"model={model} with similarity={similarity}"
    for key in ("similarity", "judge") if plain["data"].get("name") == "model" else ():  # of the model's own images
        thresholds = presets.COPY_THRESHOLDS.get((model, plain[key].get("name")))
        if thresholds:
            plain[key] = dict(zip(("copy", "strict"), thresholds, strict=True)) | plain[key]
    guidances = list(every("guidance", plain["guidance"]))
    strength = next((node["preset"] for _, node in guidances if "preset" in node), run.strength)
    if plain["task"].get("images"):  # an audit of images samples nothing
        plain["threshold"] = {"_target_": "amg.thresholds.Always"}
    for node in (plain, *(node for _, node in guidances)):
        if "preset" in (node.get("threshold") or {}):
            node["threshold"] = _threshold(node["threshold"], model, similarity, strength, of)
    if plain["looks"] == "adaptive":
        plain["looks"] = _looks(f"{model}-{similarity}", run.sampler.scheduler.rpartition(".")[2], of)
    for key, node in guidances:
        if "preset" not in node:
            continue
        takes = inspect.signature(locate(node["_target_"])).parameters
        if (
            run.on_copy == "resample" and node["preset"] == "main" and "strong" in takes
        ):  # for images that come out as copies again
            node["strong"] = _strong(node, model, similarity, of)
        missing = [name for name in ("c1", "c2", "c3") if name not in node]
        try:
            chosen = presets.constants(model, similarity, node.pop("preset"))
        except KeyError:
            if missing:
                raise ConfigError(
                    [f"{key}: no constants for {of}; set {', '.join(f'{key}.{name}' for name in missing)}, or choose "
                     "another similarity"]
                ) from None  # fmt: skip
            continue
        for name in ("c1", "c2", "c3", "normalize", "margin"):
            if name not in node:
                node[name] = getattr(chosen, name)
    return RunConfig.model_validate(plain)


def _looks(name: str, sampler: str, of: str) -> dict[str, Any]:
    """Returns the rests that `looks=adaptive` stands for."""
    from amg.guidance import presets

    try:
        found = presets.named_looks(name)
    except FileNotFoundError:
        raise NotApplicable(
            [f"looks=adaptive: nothing was learned for {of}; python run.py task=calibrate … learns it, or looks=every"]
        ) from None
    if found.sampler != sampler:
        raise NotApplicable(
            [f"looks=adaptive: for {of} it was learned with {found.sampler}, not {sampler}; looks=every"]
        )
    return found.plain()


NEEDS = {
    "needs_attention": (
        "has_attention",
        "edits cross-attention, and model={model} has none; use model=lab_sd or a Stable Diffusion",
    ),
    "needs_text_encoder": (
        "has_text_encoder",
        "rewrites prompts or edits their embeddings, and model={model} has no text encoder; "
        "use model=lab_sd or a Stable Diffusion",
    ),
    "needs_variance": (
        "learns_variance",
        "guidance.through=mean needs the variance that a network learns, and model={model} has none; "
        "use model=iddpm_cifar10, or guidance.through=eps",
    ),
    "needs_points": (
        "has_points",
        "removes the planted points of a known law, and model={model} has none; use model=closed_form",
    ),
}
"""Requirements of a guidance's class: its attribute, the attribute of the model's class that meets it, the message."""


def not_applicable(run: RunConfig) -> str | None:
    """Returns the reason that a guidance cannot serve a model, in one line; None if it can."""
    name, model = run.guidance.get("name"), run.model.get("name")
    for _, node in every("guidance", run.guidance):
        terms = node.get("terms")
        prompts = bool(terms) and "sim" not in terms
        target = locate(node["_target_"])
        if node.get("guidances") in ([], {}):
            return (
                f"guidance={name}: names no guidances; guidance=chain +guidance@guidance.guidances.a=gni "
                "+guidance@guidance.guidances.b=sim applies two"
            )
        if (prompts or getattr(target, "needs_prompts", False)) and run.conditioning != "prompt":
            return (
                f"guidance={name}: acts through text, and this run has none "
                f"(model={model}, conditioning={run.conditioning}); use guidance=sim"
            )
        if getattr(target, "needs_cfg", False) and (run.conditioning == "none" or run.s0 == 1):
            return (
                f"guidance={name}: changes classifier-free guidance, and this run has none "
                f"(model={model}, conditioning={run.conditioning}, s0={run.s0:g}); use guidance=sim"
            )
        for need, (fact, told) in NEEDS.items():
            if not getattr(target, need, False) or need == "needs_variance" and node.get("through", "mean") != "mean":
                continue
            if not getattr(locate(run.model["_target_"]), fact, False):
                return f"guidance={name}: {told.format(model=model)}"
            if need == "needs_variance" and not run.sampler.scheduler.rpartition(".")[2].startswith("DDPM"):
                return (
                    f"guidance={name}: guidance.through=mean needs the variance that a network learns, and "
                    f"sampler.scheduler={run.sampler.scheduler} draws without it; use sampler=ddpm, "
                    "or guidance.through=eps"
                )
    return None


def _children(node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes among a node's values, alone or in a list, each with the key that leads to it."""
    for key, value in node.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and "_target_" in one:
                yield f"{key}.{one.get('name')}" if one is not value and "name" in one else key, one


def every(key: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A node and all below it, each with the key that reaches it."""
    yield key, node
    for below, child in _children(node):
        yield from every(f"{key}.{below}", child)


def _listed(node: Any) -> Any:
    """Nodes by name, as Hydra composes a chain, as the list of them: their order counts, their names do not."""
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(value, dict) and "_target_" in value for value in node.values()):
        return [_listed(value) for value in node.values()]
    return {key: _listed(value) for key, value in node.items()}


def locate(target: str) -> Any:
    """The object that a dotted name stands for."""
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise ImportError(target)


def _bad_target(key: str, node: dict[str, Any], allowed: tuple[str, ...]) -> str | None:
    """Returns the reason that a component's `_target_` is refused."""
    target = node.get("_target_")
    if target is None and "preset" not in node:
        return f"{key}: no _target_; choose one of conf/{key.split('.')[0]}"
    if target is not None and (not isinstance(target, str) or not target.startswith(allowed)):
        return f"{key}._target_={target}: must begin with {', '.join(allowed)} (allow=[…] adds more)"
    return None


def _mistakes(key: str, node: dict[str, Any], allowed: tuple[str, ...]) -> list[str]:
    """Lists the mistakes of a component: bad target, unknown or missing keys, words for numbers; nested ones too."""
    if refused := _bad_target(key, node, allowed):
        return [refused]
    target = node["_target_"]
    try:
        found = locate(target)
        signature = inspect.signature(found)
    except (ImportError, AttributeError):
        return [f"{key}._target_={target}: no such class or function"]
    lines = []
    names = [name for name, parameter in signature.parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    open_ended = len(names) < len(signature.parameters)
    for given, value in node.items():
        if given in ("name", "_target_", "_partial_"):
            continue
        if given in names:
            if wanted := expected(value, signature.parameters[given], found):
                lines.append(f"{key}.{given}={shown(value)}: {wanted}")
        elif not open_ended:
            lines.append(f"{key}.{given}: {target} takes no such key{did_you_mean(given, names)}")
    for below, child in _children(node):
        lines += _mistakes(f"{key}.{below}", child, allowed)
    for name, parameter in signature.parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and name not in node and name not in PROVIDED:
            lines.append(f"{key}.{name}: missing; {target} needs it")
    return lines
