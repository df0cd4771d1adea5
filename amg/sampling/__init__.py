"""Sampling under a guidance: `sample` for models of this library, `guard` for pipelines of diffusers."""

from amg.sampling.loop import sample
from amg.sampling.pipeline import guard

__all__ = ["guard", "sample"]
