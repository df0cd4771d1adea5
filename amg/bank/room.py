"""Memory for a bank, asked before it is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

SPARE = 1.1
"""Bytes at the peak of building over bytes of the copies: measured 1.1 with 0.8 GB, of which 80 MB are fixed."""
CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Files in which Linux tells the memory limits of control groups, and the group of this process."""


def check_room(images: int, height: int, width: int, copies: float = 1) -> None:
    """Refuses a bank that cannot fit, rather than let the machine kill the run.

    Args:
        images: how many, repeats included.
        height, width: of each, RGB in float32.
        copies: that are held at once.
    Raises:
        ValueError: says what is needed and what is free.
    """
    need, available = SPARE * copies * 4 * 3 * height * width * images, free()
    if need > available:
        raise ValueError(
            f"a bank of {images:,} images of {width}×{height} pixels needs {need / 1e9:.1f} GB of memory and "
            f"{available / 1e9:.1f} GB are free: take fewer images, smaller ones (data.size), or another machine"
        )


def free() -> int:
    """Bytes that this process may still take: of the machine, or of its container or job where cgroup v2 limits it."""
    available = psutil.virtual_memory().available
    try:
        group = OWN.read_text().splitlines()[-1].partition("::/")[2]
        folder = CGROUPS / group
        for place in (folder, *folder.parents):
            if CGROUPS not in (place, *place.parents):
                break
            if (limit := (place / "memory.max")).is_file() and (most := limit.read_text().strip()) != "max":
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                taken = int((place / "memory.current").read_text()) - int(stat["inactive_file"])
                available = min(available, int(most) - taken)
    except (OSError, ValueError, KeyError, IndexError):
        pass  # another system, or another layout
    return available
