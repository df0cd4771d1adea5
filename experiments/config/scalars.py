"""Whether a value fits the annotation of the key that it is given for, where that speaks of scalars alone."""

from __future__ import annotations

import inspect
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

EXPECTED = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "text"}
EXPECTED |= {type(None): "null"}


def expected(value: Any, parameter: inspect.Parameter, target: Any) -> str | None:
    """Describes what a key takes instead of a value; None if the value fits, or nothing is known.

    Args:
        parameter: of the target's signature.
        target: the class or function; an annotation that is text is read in its module.
    """
    taken = _scalars(_annotation(parameter, target))
    if taken is None or any(_fits(value, one) for one in taken):
        return None
    return f"{' or '.join(dict.fromkeys(word for one in taken for word in _words(one)))} is expected"


def shown(value: Any) -> str:
    """A value as the command line writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _annotation(parameter: inspect.Parameter, target: Any) -> Any:
    said = parameter.annotation
    if not isinstance(said, str):
        return said
    function = target.__init__ if isinstance(target, type) else target
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return eval(said, getattr(function, "__globals__", {}))
    except Exception:  # it names what is imported for type checkers alone
        return parameter.empty


def _scalars(annotation: Any) -> list[Any] | None:
    """The alternatives of an annotation; None where one of them is no scalar."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_scalars(one) for one in get_args(annotation)]
        return None if None in parts else [one for part in parts for one in part]
    if annotation is None:
        return [type(None)]
    known = any(annotation is one for one in EXPECTED) or get_origin(annotation) in (Literal, tuple)
    return [annotation] if known else None


def _words(one: Any) -> list[str]:
    if get_origin(one) is tuple:
        return [f"[{', '.join(EXPECTED[part] for part in get_args(one))}]"]
    return [EXPECTED[one]] if one in EXPECTED else [shown(choice) for choice in get_args(one)]


def _fits(value: Any, one: Any) -> bool:
    if get_origin(one) is Literal:
        return value in get_args(one)
    if get_origin(one) is tuple:
        parts = get_args(one)
        return isinstance(value, (list, tuple)) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):  # which is an int to Python
        return one is bool
    return isinstance(value, {float: (int, float), Path: str}.get(one, one))
