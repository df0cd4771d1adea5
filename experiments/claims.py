"""What the paper claims, held against what a sweep measured."""

from __future__ import annotations

from typing import Any


def claims(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """One entry per claim that the rows at hand can speak to: text, verdict and the numbers behind it."""
    found = [_clears(metrics, "none", "full", "text"), _clears(metrics, "unconditional_none", "unconditional_full", "")]
    return [claim for claim in [*found, _needs_sim(metrics), _quality(metrics), _alignment(metrics)] if claim]


def _rows(metrics: dict[str, Any], *names: str) -> list[dict[str, Any]] | None:
    rows = [metrics.get(name) for name in names]
    return rows if all(isinstance(row, dict) for row in rows) else None


def _claim(text: str, holds: bool | None, numbers: str) -> dict[str, str]:
    verdict = "not measured" if holds is None else "holds" if holds else "does not hold"
    return {"claim": text, "verdict": verdict, "numbers": numbers}


def _clears(metrics: dict[str, Any], none: str, full: str, kind: str) -> dict[str, str] | None:
    if not (rows := _rows(metrics, none, full)):
        return None
    before, after = rows
    counts = {"guide": after["copies"], "judge": after["judge_copies"], "truth": after["truth_copies"]}
    known = {name: count for name, count in counts.items() if count is not None}
    key = "truth_copies" if before["truth_copies"] is not None else "copies"
    holds = known["guide"] == 0 and known.get("truth", 0) == 0
    numbers = f"{before[key]} of {before['n']} unguided; with AMG " + ", ".join(f"{c} ({n})" for n, c in known.items())
    return _claim(f"AMG clears all copies{' under captions' if kind else ', unconditional'}", holds, numbers)


def _needs_sim(metrics: dict[str, Any]) -> dict[str, str] | None:
    name = next((name for name in ("spe_dup", "spe", "dup") if isinstance(metrics.get(name), dict)), None)
    if name is None:
        return None
    row = metrics[name]
    left = row["truth_copies"] if row["truth_copies"] is not None else row["copies"]
    return _claim("Without G_sim some copies remain", left > 0, f"{left} of {row['n']} with {name} alone")


def _quality(metrics: dict[str, Any]) -> dict[str, str] | None:
    rows = [(name, metrics[name]) for name in ("unconditional_full", "full") if isinstance(metrics.get(name), dict)]
    rows = [(name, row) for name, row in rows if row.get("matched_ratio") is not None]
    if not rows:
        return None
    numbers = "; ".join(f"{name}: {row['matched_ratio']:.3f} ± {row['matched_ratio_se']:.3f}" for name, row in rows)
    holds = all(row["matched_ratio"] <= 1.03 for _, row in rows)
    return _claim("AMG keeps picture quality (Fréchet distance within 3 % of unguided non-copies)", holds, numbers)


def _alignment(metrics: dict[str, Any]) -> dict[str, str] | None:
    if not (rows := _rows(metrics, "none", "full")) or rows[0].get("aligned_ordinary_share") is None:
        return None
    before, after = (row["aligned_ordinary_share"] for row in rows)
    text = "AMG keeps text alignment on ordinary captions (95 % of unguided)"
    return _claim(text, after >= 0.95 * before, f"{before:.1%} unguided, {after:.1%} with AMG")
