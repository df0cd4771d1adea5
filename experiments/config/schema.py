"""The typed run-level keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from experiments.config.messages import told

TRIES = 3
"""Redraws of on_copy=resample where nothing is said."""
OWN = ("planted", "ordinary")
"""Sets of a model that has default prompts."""


class ConfigError(Exception):
    """Mistakes in the user's input, one line each."""

    def __init__(self, lines: list[str]):
        super().__init__("\n".join(lines))
        self.lines = lines


class NotApplicable(ConfigError):
    """The input is right, but this model cannot do what it asks for: "n/a" in a sweep's table."""


class SamplerConfig(BaseModel, extra="forbid", frozen=True):
    scheduler: str  # a diffusers class
    steps: int = Field(gt=0, le=1000)
    eta: float = Field(ge=0, le=1)


class MetricsConfig(BaseModel, extra="ignore", frozen=True):  # runs on disk may hold `judge`
    extractor: str  # of the Fréchet distance: efficientnet_lite0, inception or none
    reference: str  # bank, or a folder of images
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
    strength: Literal["main", "strong"]  # of AMG's constants
    decoder: Literal["auto", "vae", "tiny", "linear"] = "vae"  # what runs of before had, as the next one's default
    looks: Literal["every", "adaptive"] | dict[str, Any] = "every"  # what was learned, once presets are expanded
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
    on_copy: Literal["flag", "resample", "refuse"] | None = None  # what becomes of an image that is a copy
    download: bool = True  # fetches weights, descriptors and training images that are named and not there
    tries: int | None = Field(default=None, gt=0)  # redraws of on_copy=resample at most

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples)

    @model_validator(mode="after")
    def _one_condition(self) -> RunConfig:
        given = [key for key in ("prompt", "prompts", "labels") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt or []
        if self.prompt is not None and (not texts or any(not text.strip() for text in texts)):
            raise ValueError("prompt: empty; give some text, or leave it out for the model's default prompts")
        if self.tries is not None and self.on_copy != "resample":
            raise ValueError("tries: counts the redraws of on_copy=resample; leave it out, or choose that")
        if self.conditioning == "none" and given:
            raise ValueError(f"{given[0]}: conditioning=none takes no condition; leave one of the two out")
        return self


def validate(plain: dict[str, Any]) -> RunConfig:
    """Validates the run-level keys; fills in what other keys decide: conditioning, prompts, n_samples."""
    if plain.get("conditioning") == "prompt" and plain.get("labels") is not None:
        plain["conditioning"] = "label"
    if plain.get("on_copy") == "resample" and plain.get("tries") is None:
        plain["tries"] = TRIES
    plain.pop("tuned", None)  # read by the nodes that it is for
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
        lines += [told(one, list(RunConfig.model_fields)) for one in error.errors()]
    if lines:
        raise ConfigError(lines)
    return run


def _named(plain: dict[str, Any]) -> int:
    """Counts the prompts or labels that the keys name; 0 if the model has its own. Reads a file of prompts."""
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
