"""The rows of a sweep: jobs of other seeds are one row, each job is compared with its unguided twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amg.metrics.values import Mean, Share, number
from experiments.config.build import Parts, build
from experiments.run.folder import Manifest, configuration, is_twin
from experiments.run.measure import against_unguided
from experiments.tables.names import refuse_overlap
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
        refuse_overlap([(results[i]["run_dir"], key, configuration(results[i]["run_dir"]).seeds) for i in done])
        if len(done) > 1:
            found[key] = pool([metrics[i] for i in done])
        elif done:
            found[key] = metrics[done[0]]
        else:
            found[key] = NOT_APPLICABLE if all(results[i]["status"] == "n/a" for i in some) else None
    return found


def parts_of(run_dir: str) -> Parts:
    return build(configuration(run_dir))


TOTALS = ("n", "dropped")


def pool(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pools the metrics of all groups, disjoint ranges of seeds and thus independent samples of one distribution.

    A share is counted over all of them: Student's t over the groups' shares would print 0 ± 0 where no copy was seen.
    What is no mean over samples (a percentile, a Fréchet distance) has Student's interval over the groups.

    Args:
        groups: what `experiments.run.evaluate.evaluate` returned for each range of seeds.
    Returns:
        The same keys. Shares and totals are sums, other numbers the `Mean` over groups; `groups` is how many there
        were. A key that no group knows is None; what is no number is the first group's.
    """
    return _pooled(groups) | {"groups": len(groups)}


def _pooled(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for group in groups for key in group)
    return {key: _value(key, [group[key] for group in groups if group.get(key) is not None]) for key in keys}


def _value(key: str, known: list[Any]) -> Any:
    if not known:
        return None
    if all(isinstance(value, Share) for value in known):
        return sum(known[1:], known[0])
    if key == "by_cause":
        causes = dict.fromkeys(cause for group in known for cause in group)
        return {cause: _pooled([group[cause] for group in known if cause in group]) for cause in causes}
    if key in TOTALS:
        return sum(known)
    if len(known) > 1 and all(isinstance(value, (float, Mean)) for value in known):
        return Mean.over([number(value) for value in known])
    return known[0]
