"""ROC curves of detectors, with low false-positive rates drawn wide: there a detector is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amg.metrics.detection import auc, roc
from experiments.report.style import INK, ORDINARY, style

COLORS = ("#1f6f8b", "#c8553d", "#e0a030", "#6a4c93", "#4f8a5b", INK)
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))


def figure_roc(parts: Sequence[Any], detectors: Sequence[str], out: str | Path, rate: float = 0.01) -> Path:
    """One panel per notion of memorized, a curve per detector; logarithmic false-positive rate, `rate` marked.

    Args:
        parts: each with a `title` and `decisions`, a frame with a column `memorized`; both kinds in each.
        detectors: their names, as in the columns `score_<name>`.
        out: file to write, its suffix names the format.
    """
    with style() as plt:
        figure, axes = plt.subplots(1, len(parts), figsize=(3.6 * len(parts) + 0.2, 4.0), sharey=True, squeeze=False)
        for axis, part in zip(axes[0], parts, strict=True):
            memorized = torch.tensor(part.decisions["memorized"].to_numpy(bool))
            ordinary = int((~memorized).sum())
            edge = 0.5 / ordinary  # 0 has no place on a logarithmic axis: drawn at half a false positive
            chance = torch.logspace(torch.tensor(edge).log10().item(), 0, 100)
            axis.plot(chance, chance, color=ORDINARY, lw=0.8, label="chance")
            axis.axvline(rate, color=ORDINARY, lw=0.8, ls=":")
            for i, name in enumerate(detectors):
                scores = torch.tensor(part.decisions[f"score_{name}"].to_numpy(float))
                false, true = roc(scores, memorized)
                axis.plot(
                    (false / ordinary).clamp(min=edge), true / true[-1], drawstyle="steps-post", lw=1.5,
                    color=COLORS[i % len(COLORS)], ls=DASHES[i % len(DASHES)],
                    label=f"{name}, AUC {auc(scores, memorized):.2f}",
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xlim(edge, 1)
            axis.set_ylim(-0.02, 1.02)
            axis.set_title(f"{part.title}\n{int(memorized.sum())} memorized, {ordinary} others", fontsize=8)
            axis.set_xlabel("false-positive rate")
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(-0.02, -0.17), handlelength=2.6, ncols=2)
        axes[0][0].set_ylabel("true-positive rate")
        figure.tight_layout(w_pad=1.5)
        figure.savefig(out)
    return Path(out)
