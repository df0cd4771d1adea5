"""Figures that a set of runs allows: each guided run beside its unguided twin."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.curves import figure3, privacy_utility
from experiments.report.pictures import contact_sheet, figure4

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = ("full", "amg")
"""Of several guided runs with one twin, the method itself is the one whose curves and images are drawn."""

JUDGES = {
    "truth_copies": "by the truth",
    "planted_copies": "of planted images, by the judge",
    "judge_copies": "by the judge",
    "copies": "by the guide",
}
UTILITIES = (
    ("fid", "FID", False),
    ("alignment", "text alignment", True),
    ("alignment_ordinary", "text alignment of ordinary prompts", True),
    ("aligned_ordinary", "share of ordinary prompts answered", True),
)


def default_figures(
    runs: Mapping[str, Path],
    manifests: Mapping[str, Mapping[str, Any]],
    bank_images: Tensor | None,
    folder: Path,
    metrics: Mapping[str, Any] | None = None,
) -> list[tuple[Path, str]]:
    """Draws into `folder` and returns (file, caption) of each figure."""
    done = [name for name, manifest in manifests.items() if manifest.get("status") == "done"]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for none, guided in _twins(done, manifests):
        name = f"{none} and {guided}" if guided else none
        distance = manifests[none].get("similarity") == "nl2"
        stem = _stem(f"{none}-{guided}" if guided else none)
        guided_dir = runs[guided] if guided else None
        file = figure3(runs[none], guided_dir, folder / f"similarity-{stem}.png", distance=distance)
        found.append((file, f"Similarity to the nearest training image over sampling ({name}): medians with their "
                            "10–90 % bands, single trajectories thin, the threshold dashed."))  # fmt: skip
        if guided and bank_images is not None:
            file = figure4(runs[none], runs[guided], bank_images, folder / f"pictures-{stem}.png", distance=distance)
            found.append((file, f"The same seeds without and with the guidance ({name}), unguided copies first, each "
                                "above its nearest training image."))  # fmt: skip
    if len(done) == 1:
        file = contact_sheet(runs[done[0]], folder / "contact-sheet.png")
        found.append((file, "The first images by seed; copies, where the truth is known, have a frame."))
    metrics = metrics or {name: manifests[name].get("metrics") for name in done}
    return found + _scatters(
        [name for name in done if isinstance(metrics.get(name), Mapping)], manifests, metrics, folder
    )


def _twins(done: list[str], manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """(unguided run, the guided run to show beside it); a run that has no twin stands alone."""
    pairs: list[tuple[str, str | None]] = []
    for none in (name for name in done if manifests[name].get("guidance") == "none"):
        others = [
            name
            for name in done
            if name != none
            and manifests[name].get("guidance") != "none"
            and manifests[name].get("twin") == manifests[none].get("twin")
        ]
        others.sort(key=lambda name: manifests[name].get("guidance") not in SHOWN)
        pairs.append((none, others[0] if others else None))
    # of runs that differ in their seeds alone, the first is drawn
    first = {manifests[none].get("setting", none): (none, guided) for none, guided in reversed(pairs)}
    return [pair for pair in pairs if pair in first.values()] or [(name, None) for name in done[:1]]


def _stem(label: str) -> str:
    """A file name: labels may hold prompts and paths."""
    stem = re.sub(r"[^\w.=-]+", "-", label)
    return stem if len(stem) <= 100 else f"{stem[:90]}-{hashlib.blake2b(stem.encode(), digest_size=4).hexdigest()}"


def _scatters(
    rows: list[str], manifests: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any], folder: Path
) -> list[tuple[Path, str]]:
    """Privacy against utility, for three rows or more of one setting."""
    settings: dict[str, list[str]] = {}
    for name in rows:
        settings.setdefault(manifests[name].get("twin", ""), []).append(name)
    found = []
    for i, names in enumerate(names for names in settings.values() if len(names) > 2):
        some = {name: metrics[name] for name in names}
        privacy = next((key for key in JUDGES if all(one.get(key) is not None for one in some.values())), None)
        for utility, label, higher in UTILITIES:
            both = {name: one for name, one in some.items() if one.get(utility) is not None}
            if privacy is None or len(both) < 3:
                continue
            file = privacy_utility(
                both,
                folder / f"privacy-{utility}-{i + 1}.png",
                privacy=privacy,
                utility=utility,
                utility_label=f"{label} {'↑' if higher else '↓'}",
                higher_is_better=higher,
            )
            text = (
                f"Privacy and utility: memorized share {JUDGES[privacy]} (95 % intervals) against {label}; rivals grey."
            )
            found.append((file, text))
    return found
