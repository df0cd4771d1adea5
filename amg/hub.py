"""Whether the model hub can be asked."""

from __future__ import annotations

from functools import cache


def reachable() -> bool:
    """One try an address and process: the hub's own client tries for half a minute before it gives up."""
    from huggingface_hub import constants

    return _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception:  # of whichever HTTP library the hub's client is built on, or its offline mode
        return False
    return True
