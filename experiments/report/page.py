"""One self-contained page about a run or an experiment: no network, no framework, images inlined."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.report.samples import PAIRS, nearest_pairs, sample_table
from experiments.report.sections import default_figures
from experiments.run import records
from experiments.run.folder import Manifest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from experiments.tables.table import Table

SAMPLES = 20_000
"""Rows of the table of samples: about 400 bytes each, so that the page stays below 10 MB and sorts at once."""
VERDICTS = ("holds", "does not hold", "not measured")


def write_report(
    folder: str | Path,
    *,
    tables: Sequence[Table] = (),
    claims: Sequence[Mapping[str, str]] = (),
    figures: Sequence[tuple[str | Path, str]] | None = None,
    runs: Mapping[str, str | Path] | None = None,
    metrics: Mapping[str, Mapping[str, Any] | str | None] | None = None,
    bank_images: Tensor | None = None,
    title: str | None = None,
    command: str = "",
) -> Path:
    """Writes `report.html` into a run's or an experiment's folder, and `report.json`, what `task=overview` takes of it.

    Args:
        folder: a run folder, or the folder of an experiment.
        tables: rendered tables.
        claims: {"claim", "verdict": one of VERDICTS, "numbers"} each.
        figures: (file, caption) each; None draws those that the runs allow into `<folder>/figures`.
        runs: run folders by the name of their row; None takes `folder` itself, or all run folders in it.
        metrics: a run's metrics by the name of its row, for the scatter; None takes those of the manifests.
        bank_images: `bank_images[i]` is (3, H, W) in [−1, 1], for the nearest pairs and Figure 4; None leaves them out.
        title: of the page; the experiment's name where None.
        command: what was typed to make all of it; those of the runs where "". Each run's own is told beside its
            configuration then.
    Raises:
        FileNotFoundError: where there is no run.
        ValueError: for a verdict that is none.
    """
    from markupsafe import Markup

    folder = Path(folder)
    runs = {name: Path(path) for name, path in runs.items()} if runs else find_runs(folder)
    manifests = {name: _manifest(path) for name, path in runs.items()}
    for claim in claims:
        if claim["verdict"] not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, got {claim['verdict']!r}")
    folder.mkdir(parents=True, exist_ok=True)
    if figures is None:
        figures = default_figures(runs, manifests, bank_images, folder / "figures", metrics)
    frames = {name: records.read(path) for name, path in runs.items()}
    pairs = [] if bank_images is None else nearest_pairs(runs, frames, manifests, bank_images)
    negated = any(manifest.get("similarity") == "nl2" for manifest in manifests.values())
    facts = _facts(manifests, frames, command)
    first = next(iter(manifests.values()))
    html = template("report.html.j2").render(
        title=title or first.get("name") or folder.name,
        subtitle=_subtitle(manifests, frames),
        facts=facts,
        tables=[Markup(table.to_html()) for table in tables],
        claims=claims,
        figures=[figure(file, caption) for file, caption in figures],
        pairs=pairs,
        pairs_each=PAIRS,
        samples=sample_table(runs, frames, folder, SAMPLES),
        negated=negated,
        configs=_configs(runs, manifests if command else {}),
    )
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    made = {
        "title": title or first.get("name") or folder.name,
        "subtitle": _subtitle(manifests, frames),
        "facts": facts,
        "tables": [table.to_html() for table in tables],
        "claims": list(claims),
        "figures": [(os.path.relpath(file, folder), caption) for file, caption in figures],
        "pairs": pairs,
        "negated": negated,
        "runs": {name: os.path.relpath(path, folder) for name, path in runs.items()},
    }
    (folder / "report.json").write_text(json.dumps(made, ensure_ascii=False, indent=1), encoding="utf-8")
    return page


def template(name: str) -> Any:
    """A jinja2 template of the pages; all text is escaped."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).with_name("templates")
    return Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True).get_template(name)


def find_runs(folder: Path) -> dict[str, Path]:
    """The folder itself where it is a run, else the runs in it."""
    if (folder / "manifest.json").is_file():
        return {folder.name: folder}
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/manifest.json"))}
    if not found:
        raise FileNotFoundError(f"{folder} is no run folder and holds none (no manifest.json): generate samples first")
    return found


def _manifest(run_dir: Path) -> dict[str, Any]:
    manifest = Manifest(run_dir)
    if not manifest.path.is_file():
        raise FileNotFoundError(f"{manifest.path} is missing: {run_dir} is no run folder")
    return manifest.read()


def _subtitle(manifests: Mapping[str, Mapping[str, Any]], frames: Mapping[str, pd.DataFrame]) -> str:
    models = ", ".join(_distinct(m.get("model") for m in manifests.values()))
    runs = "one run" if len(frames) == 1 else f"{len(frames)} runs"
    samples = sum(map(len, frames.values()))
    return " · ".join(part for part in (models, runs, f"{samples} samples" if samples else "") if part)


def _facts(
    manifests: Mapping[str, Mapping[str, Any]], frames: Mapping[str, pd.DataFrame], command: str
) -> list[tuple[str, str, bool]]:
    """(name, value, is code) of what one must know to run it again."""
    several = list(manifests.values())
    seeds = [seed for frame in frames.values() for seed in (frame["seed"].min(), frame["seed"].max()) if len(frame)]
    seconds = sum(float(frame["seconds"].sum()) for frame in frames.values())
    facts = [("Command", command or "\n".join(_distinct(m.get("command") for m in several)), True)]
    if not command:
        facts.append(("Measured by", "\n".join(_distinct(m.get("evaluated_by") for m in several)), True))
    for key in ("model", "guidance", "similarity", "judge", "s0"):
        facts.append(
            (key.capitalize() if key != "s0" else "CFG scale", ", ".join(_distinct(m.get(key) for m in several)), False)
        )
    samplers = [m["sampler"] for m in several if m.get("sampler")]
    described = _distinct(_sampler(sampler) for sampler in samplers)
    facts.append(("Sampler", "; ".join(described), False))
    if seeds:
        facts.append(("Seeds", f"{min(seeds)} … {max(seeds)}", False))
    facts.append(("Sampling time", _duration(seconds) if seeds else "", False))
    facts.append(("Machine", "; ".join(_distinct(m.get("machine") for m in several)), False))
    versions = several[0].get("versions") or {}
    facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()), False))
    troubled = [
        f"{name}: {m.get('status')}, {m.get('message', '')}"
        for name, m in manifests.items()
        if m.get("status") in ("failed", "n/a")
    ]
    facts.append(("Not done", "; ".join(troubled), False))
    return [fact for fact in facts if fact[1]]


def _sampler(sampler: Any) -> str:
    if not isinstance(sampler, Mapping):
        return str(sampler)
    rest = (f"{name} {value}" for name, value in sampler.items() if name != "scheduler" and value is not None)
    return ", ".join([str(sampler.get("scheduler") or "the model's").rsplit(".", 1)[-1], *rest])


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(f"{value}" for value in values if value is not None))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figure(file: str | Path, caption: str) -> dict[str, Any]:
    """A figure with its image as a data URL, at its size on the page."""
    with Image.open(file) as image:
        width, height = image.size
        retina = 2 if (image.info.get("dpi") or (72, 72))[0] > 150 else 1
    data = base64.b64encode(Path(file).read_bytes()).decode()
    return {
        "source": f"data:image/png;base64,{data}",
        "caption": caption,
        "width": width // retina,
        "height": height // retina,
    }


def _configs(runs: Mapping[str, Path], manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, its own command, its configuration) of each run."""
    files = {name: path / "config.yaml" for name, path in runs.items()}
    return [
        (name, manifests.get(name, {}).get("command") or "", file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    ]
