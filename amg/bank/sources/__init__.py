"""Sources of training images; one file each. `opened` looks at what a path holds."""

from amg.bank.sources.base import Row, Source
from amg.bank.sources.choose import opened

__all__ = ["Row", "Source", "opened"]
