"""Anti-Memorization Guidance for diffusion models, as a library.

Names load at first use, so that `import amg` costs nothing.
"""

from importlib import import_module

_HOMES = {
    "AntiMemorizationGuidance": "amg.guidance",
    "TrainingBank": "amg.bank",
    "guard": "amg.sampling",
    "sample": "amg.sampling",
}
__all__ = ["AntiMemorizationGuidance", "TrainingBank", "guard", "sample"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'amg' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
