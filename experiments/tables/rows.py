"""The rows of a sweep: jobs that differ in their seeds alone are one row, each job compared with its unguided twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.build import Parts, build
from experiments.config.schema import RunConfig
from experiments.run.folder import Manifest, configuration, is_twin
from experiments.run.measure import against_unguided
from experiments.tables.names import refuse_overlap
from experiments.tables.pool import pool
from experiments.tables.table import NOT_APPLICABLE


def measured(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """The metrics of each job, None where it is not done; a guided one has those against its unguided twin too.

    They are kept in the run's manifest, where `task=collect` finds them.
    """
    configs = [configuration(result["run_dir"]) if result["status"] == "done" else None for result in results]
    found: list[dict[str, Any] | None] = []
    for result, run in zip(results, configs, strict=True):
        if run is None:
            found.append(None)
            continue
        manifest = Manifest(Path(result["run_dir"]))
        metrics = manifest.read()["metrics"]
        twin = next((i for i, other in enumerate(configs) if other is not None and is_twin(run, other)), None)
        if twin is not None:
            against = Path(results[twin]["run_dir"])
            metrics |= against_unguided(run, build(run), manifest.path.parent, against)
            manifest.write(metrics=metrics)
        found.append(metrics)
    return found


def rows(
    results: Sequence[Mapping[str, Any]], metrics: Sequence[dict[str, Any] | None]
) -> dict[str, dict[str, Any] | str | None]:
    """Metrics by row: pooled over seeds where jobs are done, "n/a" where the model cannot, None where all failed.

    Raises:
        ConfigError: where two jobs of a row share a seed.
    """
    jobs: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        jobs.setdefault(result["key"], []).append(i)
    found: dict[str, dict[str, Any] | str | None] = {}
    for key, some in jobs.items():
        done = list({results[i]["run_dir"]: i for i in some if metrics[i] is not None}.values())
        refuse_overlap([(results[i]["run_dir"], key, _seeds(configuration(results[i]["run_dir"]))) for i in done])
        if len(done) > 1:
            found[key] = pool([metrics[i] for i in done])
        elif done:
            found[key] = metrics[done[0]]
        else:
            found[key] = NOT_APPLICABLE if all(results[i]["status"] == "n/a" for i in some) else None
    return found


def parts_of(run_dir: str) -> Parts:
    return build(configuration(run_dir))


def _seeds(run: RunConfig) -> range:
    return range(run.seed, run.seed + run.n_samples)
