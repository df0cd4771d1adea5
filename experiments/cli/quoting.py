"""Free text on the command line, quoted before Hydra parses it: 40 % of real prompts are no valid Hydra values."""

from __future__ import annotations

import re

FREE_TEXT = re.compile(r"^(\+{0,2})(prompt|negative_prompt)=(.*)$", re.DOTALL)
ONE = r"""('(\\.|[^'\\])*'|"(\\.|[^"\\])*")"""
QUOTED = re.compile(rf"{ONE}(\s*,\s*{ONE})*", re.DOTALL)  # 'one' or, for a sweep, 'one','two'


def quote(argument: str) -> str:
    """`prompt=an owl, (red)` to `prompt='an owl, (red)'`.

    What is quoted already, a list, `null`, or no text key, stays as it is.
    """
    match = FREE_TEXT.match(argument)
    if not match:
        return argument
    plus, key, text = match.groups()
    if text == "null" or QUOTED.fullmatch(text) or (text.startswith("[") and text.endswith("]")):
        return argument
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)  # else OmegaConf takes ${…} for a reference
    # Hydra reads \' as a quote and doubles of backslashes only before a quote or the end
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{plus}{key}='{escaped}'"
