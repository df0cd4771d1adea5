"""The typed schema of a run and the checks that need no weights: every mistake is told at once, one line each."""

from __future__ import annotations

import difflib
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator

PREFIXES = ("amg.", "experiments.", "lightning.", "diffusers.", "torchmetrics.")
COMPONENTS = ("data", "guidance", "judge", "logger", "model", "similarity", "task", "threshold", "trainer")
PROVIDED = {
    "bank",
    "model",
    "similarity",
    "threshold",
    "run",
    "run_dir",
    "metrics",
    "command",
    "in_sweep",
    "device",
}  # handed to components that ask for them by name


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
    for alone in ("row", "experiment"):
        plain.pop(alone, None)
    if plain.get("conditioning") == "prompt" and plain.get("labels") is not None:
        plain["conditioning"] = "label"
    try:
        run = RunConfig.model_validate(plain)
    except ValidationError as error:
        raise ConfigError([_told(one) for one in error.errors()]) from None
    allowed = (*PREFIXES, *run.allow)
    lines = [line for key in COMPONENTS if (line := _bad_target(key, getattr(run, key), allowed))]
    if not lines and bind:  # nothing is imported while a target is not to be trusted, and Lightning (slow) last
        for key in sorted(COMPONENTS, key="trainer".__eq__):
            lines += [] if lines and key == "trainer" else _mistakes(key, getattr(run, key), allowed)
    if lines:
        raise ConfigError(lines)
    return run


def not_applicable(run: RunConfig) -> str | None:
    """Why a guidance cannot serve a model, in one line; None where it can."""
    terms = run.guidance.get("terms")
    prompts = terms is not None and bool(terms) and "sim" not in terms
    target, model = locate(run.guidance["_target_"]), f"model={run.model.get('name')}"
    who = f"guidance={run.guidance.get('name')}"
    if (prompts or getattr(target, "needs_prompts", False)) and run.conditioning != "prompt":
        return (
            f"{who}: acts through text, and this run has none "
            f"({model}, conditioning={run.conditioning}); use guidance=sim"
        )
    if getattr(target, "needs_text_encoder", False):
        if not getattr(locate(run.model["_target_"]), "has_text_encoder", False):
            return (
                f"{who}: rewrites prompts or edits their embeddings, and {model} has no text encoder; use model=lab_sd"
            )
    if getattr(target, "needs_cfg", False) and (run.conditioning == "none" or run.s0 == 1):
        return (
            f"{who}: changes classifier-free guidance, and this run has none "
            f"({model}, conditioning={run.conditioning}, s0={run.s0:g}); use guidance=sim"
        )
    return None


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
        return f"{key}: no _target_; choose one of conf/{key}"
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
    for given, value in node.items():
        if given in ("name", "_target_", "_partial_"):
            continue
        if given not in names and not open_ended:
            lines.append(f"{key}.{given}: {target} takes no such key{did_you_mean(given, names)}")
        if isinstance(value, dict) and "_target_" in value:
            lines += _mistakes(f"{key}.{given}", value, allowed)
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


def explain(error: Exception, conf: Path) -> str:
    """Hydra's complaint in one line."""
    text = str(error)
    if match := re.search(r"Could not find '([\w./-]+)/([\w.-]+)'", text):
        group, option = match.groups()
        options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; choices: {', '.join(options)}"
        return f"{group}={option}: no such choice{hint}"
    if match := re.search(r"Could not override '([\w.@-]+)'|Key '([\w-]+)' is not in struct", text):
        key = match[1] or match[2]
        return f"{key}: unknown key{did_you_mean(key, top_level_keys(conf))}"
    return " ".join(text.split())


def top_level_keys(conf: Path) -> list[str]:
    groups = [folder.name for folder in conf.iterdir() if folder.is_dir()]
    plain = [key for key in OmegaConf.load(conf / "config.yaml") if key not in ("defaults", "hydra")]
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
