"""The typed schema of a run and the checks that need no weights: every mistake is told at once, one line each."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator

PREFIXES = ("amg.", "experiments.", "lightning.", "diffusers.", "torchmetrics.")
COMPONENTS = ("data", "guidance", "judge", "logger", "model", "similarity", "task", "threshold", "trainer")
SEVERAL = ("detector",)
"""Groups of which a run may choose several; each choice is a component, by its name."""
PROVIDED = {
    "bank",
    "model",
    "similarity",
    "threshold",
    "run",
    "run_dir",
    "metrics",
    "jobs",
    "command",
    "in_sweep",
    "device",
}  # handed to components that ask for them by name
PLUGINS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}  # launcher: our extra

OWN = ("planted", "ordinary")
"""Sets of a model that has default prompts."""


class ConfigError(Exception):
    """What is wrong with the user's input, one line per mistake."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(lines))
        self.lines = lines


class SamplerConfig(BaseModel, extra="forbid", frozen=True):
    scheduler: str  # a diffusers class
    steps: int = Field(gt=0, le=1000)
    eta: float = Field(ge=0, le=1)


class MetricsConfig(BaseModel, extra="forbid", frozen=True):
    extractor: str  # of the Fréchet distance: efficientnet_lite0, inception or none
    reference: str  # bank, or a folder of pictures
    judge: bool
    scorer: str = "none"  # of text alignment: lab, clip, a CLIP folder or hub name, or none


class RunConfig(BaseModel, extra="forbid", frozen=True):
    """Run-level keys; components are `_target_` nodes, checked by `check_components`."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(ge=0)  # sample i draws from seed + i
    n_samples: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    s0: float = Field(ge=0)  # CFG scale, Eq. 7
    conditioning: Literal["none", "label", "prompt"]
    prompt: str | list[str] | None
    prompts: str | None
    labels: list[int] | None
    output_dir: str | None
    table: dict[str, Any] | None
    allow: list[str]
    sampler: SamplerConfig
    metrics: MetricsConfig
    strength: dict[str, Any]
    data: dict[str, Any]
    guidance: dict[str, Any]
    judge: dict[str, Any]
    logger: dict[str, Any]
    model: dict[str, Any]
    similarity: dict[str, Any]
    task: dict[str, Any]
    threshold: dict[str, Any]
    trainer: dict[str, Any]
    detector: dict[str, dict[str, Any]] = Field(default_factory=dict)  # task=detect brings them

    @model_validator(mode="after")
    def _one_condition(self) -> RunConfig:
        given = [key for key in ("prompt", "prompts", "labels") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt or []
        if self.prompt is not None and (not texts or any(not text.strip() for text in texts)):
            raise ValueError("prompt: empty; give some text, or leave it out for the model's default prompts")
        if self.conditioning == "none" and given:
            raise ValueError(f"{given[0]}: conditioning=none takes no condition; leave one of the two out")
        return self


def check(cfg: DictConfig, bind: bool = True) -> RunConfig:
    """Validates run-level keys, then binds every component's keys to its signature.

    Args:
        bind: False stops after what is known without importing a component, which takes seconds.

    Raises:
        ConfigError: with all mistakes.
    """
    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore
    except OmegaConfBaseException as error:
        raise ConfigError([_unresolved(error, cfg)]) from None
    plain.pop("hydra", None)
    for alone in ("row", "experiment", "sscd"):  # only chooses, or is referred to
        plain.pop(alone, None)
    plain["guidance"] = _listed(plain["guidance"])
    run = _run_level(plain)
    allowed = (*PREFIXES, *run.allow)
    nodes = {key: getattr(run, key) for key in COMPONENTS}
    nodes |= {f"{key}.{name}": node for key in SEVERAL for name, node in getattr(run, key).items()}
    lines = [line for key, node in nodes.items() if (line := _bad_target(key, node, allowed))]
    if not lines and bind:  # nothing is imported while a target is not to be trusted, and Lightning (slow) last
        for key in sorted(nodes, key="trainer".__eq__):
            lines += [] if lines and key == "trainer" else _mistakes(key, nodes[key], allowed)
    if sum(str(node.get("_target_")).endswith(".AntiMemorizationGuidance") for node in _every(run.guidance)) > 1:
        lines.append("guidance.guidances: AntiMemorizationGuidance more than once, and a record has one trace")
    if lines:
        raise ConfigError(lines)
    return run


NEEDS = {
    "needs_attention": ("has_attention", "edits cross-attention, and model={model} has none"),
    "needs_text_encoder": (
        "has_text_encoder",
        "rewrites prompts or edits their embeddings, and model={model} has no text encoder",
    ),
}
"""What a guidance's class may ask for; the fact of the model's class that grants it; what is told."""


def _run_level(plain: dict[str, Any]) -> RunConfig:
    """Validates the run-level keys; fills in what other keys decide: conditioning, prompts, n_samples."""
    if plain.get("conditioning") == "prompt" and plain.get("labels") is not None:
        plain["conditioning"] = "label"
    default = plain.pop("default_prompts", None)
    if plain.get("conditioning") == "prompt" and plain.get("prompt") is None and plain.get("prompts") is None:
        plain["prompts"] = default
    lines, named = [], 0
    try:
        named = _named(plain)
    except (ValueError, FileNotFoundError) as error:
        lines.append(f"prompts: {str(error).removeprefix('prompts: ')}")
    if plain.get("n_samples") is None:
        plain["n_samples"] = named or 1
        if not named and not lines:
            lines.append(
                "n_samples: needs a number here; null draws each one once of what prompt, prompts or labels name"
            )
    try:
        run = RunConfig.model_validate(plain)
    except ValidationError as error:
        lines += [_told(one) for one in error.errors()]
    if lines:
        raise ConfigError(lines)
    return run


def _named(plain: dict[str, Any]) -> int:
    """How many prompts or labels the keys name; 0 where the model knows its own. Reads a file of prompts."""
    if plain.get("conditioning") == "label":
        return len(labels) if isinstance(labels := plain.get("labels"), list) else 0
    if plain.get("prompt") is not None:
        return len(plain["prompt"]) if isinstance(plain["prompt"], list) else 1
    if plain.get("conditioning") != "prompt" or not isinstance(plain.get("prompts"), str) or plain["prompts"] in OWN:
        return 0
    from amg.prompts import READERS, SETS, read_prompts

    source = plain["prompts"]
    if source not in SETS and Path(source).suffix.lower() not in READERS:
        raise ValueError(
            f"{source!r} is no file ({', '.join(READERS)}) and no set ({', '.join((*SETS, *OWN))}); "
            "text itself is given as prompt="
        )
    return len(read_prompts(source))


def not_applicable(run: RunConfig) -> str | None:
    """Why a guidance cannot serve a model, in one line; None where it can."""
    name, model = run.guidance.get("name"), run.model.get("name")
    for node in _every(run.guidance):
        terms = node.get("terms")
        prompts = terms is not None and bool(terms) and "sim" not in terms
        target = locate(node["_target_"])
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
            if getattr(target, need, False) and not getattr(locate(run.model["_target_"]), fact, False):
                return f"guidance={name}: {told.format(model=model)}; use model=lab_sd or a Stable Diffusion"
    return None


def _children(node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes among a node's values, alone or in a list, each with the key that leads to it."""
    for key, value in node.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and "_target_" in one:
                yield f"{key}.{one.get('name')}" if one is not value and "name" in one else key, one


def _every(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node and all below it."""
    yield node
    for _, child in _children(node):
        yield from _every(child)


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
    """Why a component's `_target_` is refused."""
    target = node.get("_target_")
    if target is None:
        return f"{key}: no _target_; choose one of conf/{key.split('.')[0]}"
    if not isinstance(target, str) or not target.startswith(allowed):
        return f"{key}._target_={target}: must begin with {', '.join(allowed)} (allow=[…] adds more)"
    return None


def _mistakes(key: str, node: dict[str, Any], allowed: tuple[str, ...]) -> list[str]:
    """Why a component cannot be built: bad target, unknown or missing keys; nested components too."""
    if refused := _bad_target(key, node, allowed):
        return [refused]
    target = node["_target_"]
    try:
        signature = inspect.signature(locate(target))
    except (ImportError, AttributeError):
        return [f"{key}._target_={target}: no such class or function"]
    lines = []
    names = [name for name, parameter in signature.parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    open_ended = len(names) < len(signature.parameters)
    for given in node:
        if given in ("name", "_target_", "_partial_"):
            continue
        if given not in names and not open_ended:
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


def did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(sorted(known)) or 'none'}"


def explain(error: Exception, folders: list[Path]) -> str:
    """Hydra's complaint in one line.

    Args:
        folders: `conf/` and the user's own, where choices are looked for.
    """
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([\w./-]+)/([\w.-]+)'", text):
        group, option = match.groups()
        if option in PLUGINS:
            return f"hydra/launcher={option}: needs a plugin: pip install -e '.[{PLUGINS[option]}]'"
        options = sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; choices: {', '.join(options)}"
        return f"{group}={option}: no such choice{hint}"
    if match := re.search(r"Could not override '([\w.@-]+)'|Key '([\w-]+)' is not in struct", text):
        key = match[1] or match[2]
        if key in SEVERAL:
            return f"{key}: only task=detect takes it"
        return f"{key}: unknown key{did_you_mean(key, top_level_keys(folders))}"
    return " ".join(text.split())


def top_level_keys(folders: list[Path]) -> list[str]:
    groups = [group.name for folder in folders for group in folder.iterdir() if group.is_dir()]
    plain = [key for key in OmegaConf.load(folders[0] / "config.yaml") if key not in ("defaults", "hydra")]
    return sorted({*groups, *plain})


def _unresolved(error: OmegaConfBaseException, cfg: DictConfig) -> str:
    if isinstance(error, InterpolationResolutionError) and "strength." in str(error):
        model = OmegaConf.select(cfg, "model.name")
        similarity = OmegaConf.select(cfg, "similarity.name")
        return (
            f"{error.full_key}: conf/strength has no constant for model={model} with similarity={similarity}; "
            "set the key itself, or choose another similarity"
        )
    if "???" in str(error) or "Missing mandatory" in str(error):
        return f"{error.full_key}: needs a value"
    return " ".join(str(error).split())


def _told(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"] if part not in ("str", "list[str]"))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(key, list(RunConfig.model_fields))}"
    if not key:
        return message
    return f"{key}={error['input']!r}: {message[0].lower()}{message[1:]}"
