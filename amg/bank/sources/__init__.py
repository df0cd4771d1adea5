"""Where training images come from; one file each. `opened` looks at what a path holds."""

from amg.bank.sources.base import Row, Source, opened

__all__ = ["Row", "Source", "opened"]
