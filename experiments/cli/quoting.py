"""Texts and paths on the command line, quoted before Hydra parses them: 40 % of real prompts are no valid values."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from experiments.config.bind import PATHS

ARGUMENT = re.compile(r"(\+{0,2}(?:[\w@/-]+\.)*([\w@/-]+))=(.*)", re.DOTALL)
ONE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
QUOTED = re.compile(rf"\s*{ONE}(?:\s*,\s*{ONE})*\s*", re.DOTALL)  # 'one' or, for a sweep, 'one','two'
FUNCTION = re.compile(r"[a-z]+\(.*\)", re.DOTALL)
BETWEEN_COMMAS = re.compile(rf"\s*{ONE}\s*(?=,|\Z)|[^,]+", re.DOTALL)


def quote(argument: str, sweep: bool = False) -> str:
    """`prompt=an owl, (red)` to `prompt='an owl, (red)'`; paths too, and what Hydra's grammar does not take.

    What is quoted already, a list that Hydra takes, and `null` stay as they are.

    Args:
        sweep: a comma stands between values, but in a prompt; a function, as choice(a,b), stays as it is.
    """
    match = ARGUMENT.fullmatch(argument)
    if not match or argument.startswith("-"):
        return argument
    key, name, value = match.groups()
    text, path = name == "prompt", name in PATHS
    if not text and value.lower() in ("", "null") or value == "null" or QUOTED.fullmatch(value):
        return argument
    if value.startswith("[") and value.endswith("]"):
        return argument if text or _read(value) is not None else f"{key}=[{_each(value[1:-1])}]"
    if not (text or path) and _read(value) is not None or sweep and FUNCTION.fullmatch(value):
        return argument
    if text:  # else OmegaConf takes ${…} for a reference, which a path may hold
        value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
        return f"{key}={_quoted(value)}"
    return f"{key}={_each(value) if sweep else _as_text(value)}"


def _read(value: str) -> Any:
    """What Hydra's grammar makes of a value; None where it takes it not."""
    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None


def _each(values: str) -> str:
    """Quotes each value between commas where need be."""
    parts = BETWEEN_COMMAS.findall(values)
    return ",".join(part if QUOTED.fullmatch(part) else _as_text(part.strip()) for part in parts)


def _as_text(value: str) -> str:
    """Quoted, unless Hydra reads it as it is."""
    return value if _read(value) == value else _quoted(value)


def _quoted(text: str) -> str:
    # Hydra reads \' as a quote and doubles of backslashes only before a quote or the end
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
