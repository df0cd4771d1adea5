"""Curves: the similarity over sampling (Figure 3), privacy against utility, ROC of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.text import Text

from amg.metrics.detection import auc, roc
from amg.metrics.values import Share, number
from amg.worlds.drawings import CAUSES
from experiments.report.style import GUIDED, INK, ORDINARY, UNGUIDED, style
from experiments.run import records
from experiments.tables.claims import RIVALS
from experiments.tables.names import guidance_of

if TYPE_CHECKING:
    import pandas as pd


SINGLE_CHAINS = 3
COPIED, NOVEL = "copied when unguided", "novel when unguided"


@dataclass(frozen=True)
class Chains:
    """Traces of some samples of one run, (n, T) each; times (T,) from 1, pure noise, to 0, the image."""

    seeds: tuple[int, ...]
    times: np.ndarray
    similarity: np.ndarray
    threshold: np.ndarray

    def nearest(self, n: int) -> tuple[int, ...]:
        """Seeds of the n trajectories that end most alike to a training image."""
        return tuple(self.seeds[i] for i in np.argsort(-self.similarity[:, -1], kind="stable")[:n])

    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """10th percentile, median and 90th percentile at each time, (T,) each."""
        low, median, high = np.nanpercentile(self.similarity, (10, 50, 90), axis=0)
        return low, median, high


def chains(rows: pd.DataFrame) -> Chains | None:
    """Stacks the traces of a run's rows; None where there are none.

    Raises:
        ValueError: for traces of different lengths, which are not of one run.
    """
    rows = rows[rows["trace_t"].map(len) > 0]
    if not len(rows):
        return None
    lengths = sorted(set(rows["trace_t"].map(len)))
    if len(lengths) > 1:
        raise ValueError(f"traces of {lengths} steps in one run folder: each run needs a folder of its own")
    stack = {name: np.stack([np.asarray(v, float) for v in rows[name]]) for name in _TRACES}
    return Chains(
        tuple(rows["seed"].tolist()), stack["trace_t"][0], stack["trace_similarity"], stack["trace_threshold"]
    )


_TRACES = ("trace_t", "trace_similarity", "trace_threshold")


def panels(unguided: pd.DataFrame) -> dict[str, set[int]]:
    """Seeds of each panel of Figure 3: by cause; where there are no prompts, by what the unguided trajectory became."""
    causes = [cause for cause in dict.fromkeys(unguided["cause"]) if cause]
    if causes:
        order = sorted(causes, key=lambda cause: (*CAUSES, cause, "ordinary").index(cause))
        return {cause: set(unguided.loc[unguided["cause"] == cause, "seed"]) for cause in order}
    known = unguided[unguided["truth"].notna()]
    if len(known):
        copied = set(known.loc[known["truth"].astype(bool), "seed"])
    else:  # without the truth: the trajectories that end above λ
        ends = zip(unguided["trace_similarity"], unguided["trace_threshold"], strict=True)
        above = [len(s) > 0 and s[-1] > lam[-1] for s, lam in ends]
        copied = set(unguided.loc[above, "seed"])
    return {COPIED: copied, NOVEL: set(unguided["seed"]) - copied}


def figure3(run_none: str | Path, run_guided: str | Path | None, out: str | Path, *, distance: bool = False) -> Path:
    """Similarity σ_t over sampling without and with a guidance, λ_t dashed; one panel per cause (Figure 3).

    A median with its 10–90 % band; thin, the single trajectories that came nearest without guidance; grey, the median
    of ordinary unguided trajectories.

    Args:
        run_none: folder of the run without guidance.
        run_guided: folder of the same seeds with it; None draws the first alone.
        out: file to write, its suffix names the format.
        distance: whether σ is a negated nL2; then the axis counts distances, downwards.
    """
    none = records.read(run_none)
    guided = records.read(run_guided) if run_guided is not None else none.iloc[:0]
    found = {name: seeds for name, seeds in panels(none).items() if seeds}
    ordinary = chains(none[none["seed"].isin(next((found[k] for k in ("ordinary", NOVEL) if k in found), set()))])
    columns = 1 if len(found) == 1 else 2
    lines = -(-len(found) // columns)
    sign = -1.0 if distance else 1.0
    with style() as plt:
        figure, axes = plt.subplots(
            lines, columns, figsize=(3.5 * columns + 0.4, 2.35 * lines + 0.75), sharex=True, sharey=True, squeeze=False
        )
        for axis, (name, seeds) in zip(axes.flat, found.items(), strict=False):
            if ordinary is not None and name not in ("ordinary", NOVEL):
                axis.plot(ordinary.times, sign * ordinary.band()[1], color=ORDINARY, lw=1.2, label="ordinary, without")
            shown: Sequence[int] = ()
            for rows, color, label in ((none, UNGUIDED, "without"), (guided, GUIDED, "with guidance")):
                some = chains(rows[rows["seed"].isin(seeds)])
                if some is not None:
                    shown = shown or some.nearest(SINGLE_CHAINS)
                    _draw(axis, some, color, label, sign, shown)
            axis.set_title(f"{name[0].upper()}{name[1:]} (n = {len(seeds)})")
        for axis in axes.flat[len(found) :]:
            axis.set_visible(False)
        _label(figure, axes, distance, bottom=[axes[(i := len(found) - 1) // columns][i % columns]])
        figure.savefig(out)
    return Path(out)


def _draw(axis: Any, some: Chains, color: str, label: str, sign: float, shown: Sequence[int]) -> None:
    low, median, high = (sign * line for line in some.band())
    axis.fill_between(some.times, low, high, color=color, alpha=0.12, lw=0)
    for row in (some.seeds.index(seed) for seed in shown if seed in some.seeds):
        axis.plot(some.times, sign * some.similarity[row], color=color, lw=0.6, alpha=0.6)
    axis.plot(some.times, median, color=color, lw=1.8, label=label)
    lam = some.threshold[0]
    if np.isfinite(lam).any():  # `Always` has λ = −∞
        axis.plot(some.times, sign * lam, color=INK, lw=1.0, ls=(0, (4, 2.5)), label="threshold λ$_t$")


def _label(figure: Any, axes: np.ndarray, distance: bool, bottom: Sequence[Any]) -> None:
    first = axes[0][0]
    first.set_xlim(1, 0)
    first.set_xticks([1, 0.75, 0.5, 0.25, 0], ["noise", "0.75", "0.5", "0.25", "image"])
    if distance:
        first.invert_yaxis()
    for axis in axes[:, 0]:
        axis.set_ylabel("nL2 to nearest (up: closer)" if distance else "similarity σ$_t$ to nearest")
    for axis in (*axes[-1], *bottom):
        axis.set_xlabel("t, fraction of the schedule")
        axis.tick_params(labelbottom=True)
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [name for name in ("without", "with guidance", "ordinary, without", "threshold λ$_t$") if name in entries]
    figure.legend([entries[name] for name in order], order, loc="upper center", ncols=len(order), handlelength=1.8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()), w_pad=2.5)


def privacy_utility(
    results: Mapping[str, Mapping[str, Any] | str | None],
    out: str | Path,
    *,
    privacy: str = "copies",
    utility: str = "fid",
    labels: Mapping[str, str] | None = None,
    utility_label: str | None = None,
    higher_is_better: bool = False,
) -> Path:
    """Memorized share against a utility, a point per row that was run, rivals grey; bars are 95 % intervals.

    Args:
        results: metrics by row, as for `experiments.tables.table.render`; rows without both numbers are left out.
        privacy: a share, e.g. "copies", "judge_copies" or "truth_copies".
        utility: a metric, e.g. "fid" or "aligned_ordinary".
        labels: how rows are called in the figure.
        utility_label: of the axis; `utility` where None.
        higher_is_better: of the utility.
    Raises:
        ValueError: where no row has both numbers.
    """
    points = []
    for name, metrics in results.items():
        share, value = (
            (metrics.get(privacy), number(metrics.get(utility))) if isinstance(metrics, Mapping) else (None, 0)
        )
        if isinstance(share, Share) and share.n and value is not None:
            points.append((name, share, value))
    if not points:
        raise ValueError(f"no row has both {privacy} and {utility}")
    with style() as plt:
        figure, axis = plt.subplots(figsize=(5.6, 3.6))
        for name, share, value in points:
            low, high = (100 * end for end in share.interval)
            x, guidance = 100 * share.value, guidance_of(name)[0]
            none = guidance == "none"
            color = UNGUIDED if none else ORDINARY if guidance in RIVALS else GUIDED
            axis.hlines(value, low, high, color=color, lw=0.8, alpha=0.5)
            axis.plot(x, value, "o", color=color, ms=5.5, mec="white", mew=0.8, zorder=4 if none else 3)
        axis.set_xlabel("memorized share, %")
        axis.set_ylabel(utility_label or utility)
        axis.set_xlim(left=min(-1.0, axis.get_xlim()[0] * 0), right=axis.get_xlim()[1])
        axis.margins(y=0.15)
        axis.autoscale_view(scalex=False)
        corner = (0.0, 1.0) if higher_is_better else (0.0, 0.0)
        axis.annotate(
            "better", corner, xycoords="axes fraction", xytext=(8, -8 if higher_is_better else 8),
            textcoords="offset points", va="top" if higher_is_better else "bottom", fontsize=8, style="italic",
            color=ORDINARY,
        )  # fmt: skip
        figure.tight_layout()
        _name_points(
            figure, axis, [((labels or {}).get(name, name), 100 * share.value, y) for name, share, y in points]
        )
        figure.savefig(out)
    return Path(out)


def _name_points(figure: Any, axis: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names each point where its name covers nothing and no other point is nearer; else farther off, by a line."""
    renderer = figure.canvas.get_renderer()
    dots = axis.transData.transform([(x, y) for _, x, y in points])
    taken = [text.get_window_extent(renderer) for text in axis.texts]
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        own = axis.transData.transform((x, y))
        for dx, dy in (*_NEAR, *_FAR):
            far = (dx, dy) in _FAR
            text = axis.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8, va="center",
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": ORDINARY, "shrinkB": 4} if far else None,
            )  # fmt: skip
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(1)  # of the words, without the line
            gaps = [_gap(box, dot) for dot in dots]
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and axis.bbox.y0 <= box.y0
            free = min(gaps) > 0 and not any(box.overlaps(other) for other in taken)
            last = (dx, dy) == _FAR[-1]  # all places taken: a name left out would hide the row
            if last or (inside and free and (far or _gap(box, own) <= min(gaps))):
                taken.append(box)
                break
            text.remove()


def _gap(box: Any, dot: np.ndarray) -> float:
    """Pixels between a box and a point; 0 inside."""
    low, high = np.array(box.p0), np.array(box.p1)
    return float(np.linalg.norm(np.maximum(np.maximum(low - dot, dot - high), 0)))


_NEAR = [(7, 7), (7, -8), (-7, 7), (-7, -8), (0, 11), (0, -12)]
_FAR = [(dx, dy) for dx in (28, 56, 84) for dy in range(48, -49, -12)]  # from the top, as the points


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
