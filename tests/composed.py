"""Compositions of the configuration, and the mistakes that a command line makes."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.schema import ConfigError

ROOT = Path(__file__).parents[1]


def composed(*overrides: str):
    """The full configuration, with a word wherever only the user can say what to put."""
    cfg = compose_config(list(overrides))
    missing = sorted(OmegaConf.missing_keys(cfg))
    return compose_config([*overrides, *(f"++{key}=given" for key in missing)]) if missing else cfg


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(compose_config(list(arguments)))
    return caught.value.lines
