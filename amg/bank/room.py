"""Memory for a bank, asked before it is taken."""

import psutil


def check_room(pictures: int, height: int, width: int) -> None:
    """Refuses a bank that cannot fit, rather than let the machine kill the run.

    A bank holds float32 pictures; while it is built there are two copies.

    Args:
        pictures: how many, repeats included.
        height, width: of each, RGB.
    Raises:
        ValueError: says what is needed and what is free.
    """
    need, free = 2 * 4 * 3 * height * width * pictures, psutil.virtual_memory().available
    if need > free:
        raise ValueError(
            f"a bank of {pictures:,} pictures of {width}×{height} pixels needs {need / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: take fewer pictures, smaller ones (data.size), or another machine"
        )
