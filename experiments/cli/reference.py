"""`python -m experiments.cli.reference`: writes docs/configuration.md, every group, choice and key, from the code."""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from omegaconf import OmegaConf
from pydantic import BaseModel

from experiments.config.bind import PROVIDED, locate
from experiments.config.messages import SEVERAL
from experiments.config.schema import MetricsConfig, RunConfig, SamplerConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"
OURS = ("amg.", "experiments.")
SCHEMAS = {"sampler": SamplerConfig, "metrics": MetricsConfig}
INTRO = """\
# Configuration

Written by `python -m experiments.cli.reference` from the code: change that, not this.

`group=choice` chooses a yaml of `conf/`, `group.key=value` reaches into it, `key=value` sets a key of the run. A yaml \
names a class and only what differs from its own defaults, so the tables of keys below are those of the classes. \
Keys are checked before anything is loaded. `python run.py --cfg job` prints what is composed.
"""


def page() -> str:
    """The whole page, Markdown."""
    parts = [INTRO, "## Keys of the run\n", _keys(_run_level())]
    groups = sorted({_group(file) for file in CONF.rglob("*.yaml")} - {""})
    nodes = {group: [_node(file, group) for file in _files(group)] for group in groups}
    homes = {node["_target_"]: group for group in groups for node in nodes[group] if "_target_" in node}
    for group in groups:
        parts += _choices(group)
        for target, given in (found for node in nodes[group] for found in _targets(node)):
            if target.startswith(OURS) and homes.setdefault(target, group) == group:
                homes[target] = ""  # told once, where it is chosen
                parts += _component(target, given)
    return "\n".join(parts).rstrip() + "\n"


def comment(text: str) -> str:
    """The first comment of a yaml that says something, with its continuation; "" where there is none."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or (lines and lines[-1].endswith(".")):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def first_paragraph(doc: str | None) -> str:
    """Of a docstring, in one line; with the next one where the sentence goes on in it."""
    first, *more = inspect.cleandoc(doc or "").split("\n\n")
    text = first if first.endswith((".", ")")) or not more else f"{first} {more[0]}"
    return " ".join(text.split())


def described(doc: str | None) -> dict[str, str]:
    """Reads the `Args:` of a docstring by key; several may share one entry."""
    block = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(doc or "") + "\n", re.M)
    if block is None:
        return {}
    found: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\S)", block[1], flags=re.M)[1:]:
        names, _, text = entry.partition(":")
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def _group(file: Path) -> str:
    parts = file.relative_to(CONF).parts[:-1]
    return "/".join(parts[: 2 if parts[:1] == ("hydra",) else 1])


def _files(group: str) -> list[Path]:
    return sorted(file for file in CONF.rglob("*.yaml") if _group(file) == group)


def _node(file: Path, group: str) -> dict[str, Any]:
    """The component in a yaml, which a global one holds under its group's name; else all of the yaml."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(file))
    below = plain.get(group)
    return below if isinstance(below, dict) else plain


def _choices(group: str) -> list[str]:
    """The head of a group and the table of its choices."""
    files = _files(group)
    default = next((one[group] for one in OmegaConf.load(CONF / "config.yaml").defaults if group in one), None)
    several = f" Several at once: `{group}=[a,b]`, each reached by its name." if group in SEVERAL else ""
    note = f"Default: `{default}`." if default else "Only where chosen."
    parts = [
        f"## {group}\n",
        note + several,
        "",
        "| choice | | sets |",
        "| --- | --- | --- |",
    ]
    for file in files:
        name = file.relative_to(CONF / group).with_suffix("")
        parts.append(_line(f"`{name}`", _cell(comment(file.read_text())), _cell(_settings(group, file))))
    parts.append("")
    if group in SCHEMAS:
        parts.append(_keys(_schema(SCHEMAS[group], files[0], group)))
    return parts


def _targets(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The classes of a node and of all below it."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"], node
        for value in node.values():
            yield from _targets(value)


def _settings(group: str, file: Path) -> str:
    """Lists the keys that a yaml sets, short."""
    if group == "experiment":
        return ""
    plain: Any = OmegaConf.to_container(OmegaConf.load(file))
    words = [_override(one) for one in plain.get("defaults", []) if one != "_self_"]
    node = _node(file, group)
    around = plain.items() if node != plain else ()  # what a global yaml sets beside the component
    for key, value in [*node.items(), *around]:
        if key in ("name", "_target_", "defaults", group) or isinstance(value, list) and len(value) > 8:
            continue
        if other := _decided_by(value):
            words.append(f"`{key}` by `{other}`")
        elif isinstance(value, dict) and "_target_" in value:
            inner = [
                f"{name} by {other}" if (other := _decided_by(one)) else f"{name}={_value(one)}"
                for name, one in value.items()
                if name != "_target_"
            ]
            words.append(f"`{key}={value['_target_'].split('.')[-1]}({', '.join(inner)})`")
        elif isinstance(value, dict):
            words += [f"`{key}.{name}={_value(one)}`" for name, one in value.items() if not isinstance(one, dict)]
        else:
            words.append(f"`{key}={_value(value)}`")
    return ", ".join(words)


def _decided_by(value: Any) -> str | None:
    """The key that an interpolation begins with; None for any other value."""
    found = re.match(r"\$\{(?:oc\.select:)?(\w+)", value) if isinstance(value, str) else None
    return found and found[1]


def _override(one: Any) -> str:
    """An entry of a yaml's defaults list as the override that says the same."""
    if not isinstance(one, dict):
        return f"`{one.split('@')[0]}`"
    (group, choice), *_ = one.items()
    return f"`{group.removeprefix('override ').removeprefix('/')}={choice}`"


def _component(target: str, given: dict[str, Any]) -> list[str]:
    """A class or function: its first paragraph and its keys."""
    found = locate(target)
    takes = described(found.__doc__) | _fields(found)
    rows = []
    for name, parameter in inspect.signature(found).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in PROVIDED - set(given):
            continue
        kind = "" if parameter.annotation is parameter.empty else _kind(parameter.annotation)
        default = "needed" if parameter.default is parameter.empty else _value(parameter.default)
        rows.append((name, kind, default, takes.get(name, "")))
    text = first_paragraph(found.__doc__)
    return [f"**`{target}`** {_escaped(text)}\n", _keys(rows) if rows else ""]


def _fields(found: Any) -> dict[str, str]:
    """The strings below a dataclass's fields."""
    if not is_dataclass(found):
        return {}
    body = ast.parse(inspect.getsource(found)).body[0].body  # type: ignore[attr-defined]
    pairs = [(a, b) for a, b in pairwise(body) if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)]
    return {a.target.id: b.value.value for a, b in pairs}  # type: ignore[attr-defined]


def _run_level() -> list[tuple[str, str, str, str]]:
    """The plain keys of conf/config.yaml, typed by the schema, each with its comment."""
    return _schema(RunConfig, CONF / "config.yaml", "")


def _schema(schema: type[BaseModel], file: Path, group: str) -> list[tuple[str, str, str, str]]:
    defaults: Any = OmegaConf.to_container(OmegaConf.load(file))
    comments = dict(re.findall(r"^(\w+):[^#\n]*#\s*(.+)$", file.read_text(), re.M))
    rows = []
    for name, default in defaults.items():
        if name in ("defaults", "hydra"):
            continue
        kind = type(default).__name__  # what only chooses, or is referred to, is no field of the schema
        if name in schema.model_fields:
            field = schema.model_fields[name]
            kind = ", ".join([_kind(field.annotation), *(limit for one in field.metadata if (limit := _limit(one)))])
        rows.append((f"{group}.{name}" if group else name, kind, _value(default), comments.get(name, "")))
    return rows


def _kind(annotation: Any) -> str:
    """A type as one reads it: the values of a Literal, unions with bars."""
    if isinstance(annotation, types.UnionType):
        return " | ".join(_kind(one) for one in get_args(annotation))
    if get_origin(annotation) is Union:  # its order is that of whoever wrote it first in the process
        return " | ".join(sorted(_kind(one) for one in get_args(annotation)))
    if annotation is type(None):
        return "null"
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(map(str, get_args(annotation)))
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\bNone\b", "null", text.replace("typing.", ""))


def _limit(one: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(f"{sign} {getattr(one, name)}" for name, sign in signs.items() if hasattr(one, name))


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value).removeprefix("torch.")


def _keys(rows: list[tuple[str, str, str, str]]) -> str:
    """A table of keys."""
    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for name, kind, default, text in rows:
        lines.append(_line(f"`{name}`", _cell(kind), _cell(default), _cell(text)))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Angle brackets would be read as HTML."""
    return text.replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
