"""One look for every figure: quiet axes, two colours that survive colour-blindness and print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

UNGUIDED, GUIDED, ORDINARY, INK = "#c8553d", "#1f6f8b", "#9a9a9a", "#333333"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
}


@contextmanager
def style() -> Iterator:
    """pyplot with the house's look and the Agg backend; closes what it opened."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    with plt.rc_context(STYLE):
        try:
            yield plt
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
