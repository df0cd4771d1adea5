"""Free text on the command line, quoted before Hydra parses it: 40 % of real prompts are no valid Hydra values."""

from __future__ import annotations

import re

FREE_TEXT = re.compile(r"^(\+{0,2})(prompt|negative_prompt)=(.*)$", re.DOTALL)


def quote(argument: str) -> str:
    """`prompt=a goat, (red)` to `prompt='a goat, (red)'`.

    What is quoted already, a list, `null`, or no text key, stays as it is.
    """
    match = FREE_TEXT.match(argument)
    if not match:
        return argument
    plus, key, text = match.groups()
    if text == "null" or _is_quoted(text) or (text.startswith("[") and text.endswith("]")):
        return argument
    # Hydra reads \' as a quote and doubles of backslashes only before a quote or the end
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{plus}{key}='{escaped}'"


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
