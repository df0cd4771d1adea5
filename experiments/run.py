"""One run: one configuration, one folder, one row of a table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from experiments.config import check, not_applicable
from experiments.schema import ConfigError, RunConfig

DECIDES = ("seed", "s0", "conditioning", "prompt", "prompts", "labels", "sampler")
NODES = ("data", "guidance", "judge", "model", "similarity", "threshold")
PACKAGES = ("torch", "diffusers", "lightning", "hydra-core", "numpy")


def run(cfg: DictConfig, command: str = "", in_sweep: bool = False) -> Path:
    """Checks the configuration, then does its task; returns the run's folder.

    Raises:
        ConfigError: for everything that is the user's to mend.
    """
    config = check(cfg)
    reason = not_applicable(config)
    if reason:
        raise ConfigError([reason])
    from experiments.build import component

    return component(config.task, run=config, command=command, in_sweep=in_sweep)


def generate_run(run: RunConfig, command: str = "", in_sweep: bool = False, draw: bool = True) -> Path:
    """`task=generate` and `task=evaluate`: samples, their metrics, table and report; returns the run's folder.

    Args:
        draw: draws the seeds that are missing on disk; False measures what is there.
    """
    from experiments.build import build
    from experiments.conditions import conditions
    from experiments.generate import generate
    from experiments.loggers import log
    from experiments.present import present

    parts = build(run)
    chosen = conditions(run, parts.model)
    run_dir = folder(run, parts, chosen)
    run_dir.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # Lightning started this process to draw its share, no more
        generate(run, parts, chosen, run_dir)
        return run_dir
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            manifest = Manifest(run_dir)
            if draw:
                same_as_before(run, run_dir)
            with manifest.running(command=command, **facts(run, parts, chosen)):
                dump = yaml.safe_dump(run.model_dump(), sort_keys=False, allow_unicode=True)
                (run_dir / "config.yaml").write_text(dump)
                drawn = generate(run, parts, chosen, run_dir) if draw else 0
                from experiments.measure import measure

                metrics = measure(run, parts, run_dir)
                manifest.write(status="done", metrics=metrics)
                present(run, parts, run_dir, metrics, drawn, in_sweep)
                log(run, run_dir, metrics)
    except Timeout:
        raise ConfigError(
            [f"{run_dir} is in use by another process: wait for it, or choose another output_dir"]
        ) from None
    return run_dir


def same_as_before(config: RunConfig, run_dir: Path, nodes: Sequence[str] = NODES, kind: str = "records") -> None:
    """Refuses a folder with samples of another configuration: a table over both would mean nothing."""
    file = run_dir / "config.yaml"
    if not file.is_file() or not any((run_dir / kind).glob("*.parquet")):
        return
    before, now = yaml.safe_load(file.read_text()), config.model_dump()
    changed = [key for key in (*DECIDES, *nodes) if before.get(key) != now[key]]
    if changed:
        raise ConfigError(
            [f"output_dir={run_dir}: holds samples of another {', '.join(changed)}; choose another folder or empty it"]
        )


def folder(
    config: RunConfig,
    parts: Any,
    chosen: list[str | int] | None,
    nodes: Sequence[str] = NODES,
    label: str | None = None,
) -> Path:
    """`output_dir`, or a name with the hash of all that decides a picture (or whatever else the nodes decide)."""
    if config.output_dir:
        return Path(config.output_dir)
    digest = _digest(config, parts, chosen, (*DECIDES, *nodes))
    return Path("runs") / config.name / f"{config.model.get('name')}-{label or config.guidance.get('name')}-{digest}"


def _digest(config: RunConfig, parts: Any, chosen: list[str | int] | None, keys: Sequence[str]) -> str:
    """A hash of these keys, of prompts, bank and weights."""
    dump = config.model_dump()
    decides = {key: dump[key] for key in keys}
    content = json.dumps([decides, chosen, parts.bank.digest(), getattr(parts.model, "digest", None)], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=5).hexdigest()


def facts(config: RunConfig, parts: Any, chosen: list[str | int] | None) -> dict[str, Any]:
    """What one must know to believe a number."""
    return {
        "name": config.name,
        "model": config.model.get("name"),
        "guidance": config.guidance.get("name"),
        "similarity": config.similarity.get("name"),
        "judge": config.judge.get("name"),
        "s0": config.s0,
        "seed": config.seed,
        "n_samples": config.n_samples,
        "setting": _digest(config, parts, chosen, [key for key in (*DECIDES, *NODES) if key != "seed"]),  # groups seeds
        "sampler": config.sampler.model_dump(),
        "bank": {"digest": parts.bank.digest(), "pictures": len(parts.bank), "note": parts.bank.note},
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {parts.model.device}",
    }


class Manifest:
    """`manifest.json`: what a run is and how it went."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "manifest.json"

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    @contextmanager
    def running(self, **entries: Any) -> Iterator[None]:
        """The status of what happens within: running, and failed with its message after an error."""
        self.write(status="running", message=None, **entries)
        try:
            yield
        except Exception as error:
            self.write(status="failed", message=f"{type(error).__name__}: {error}")
            raise

    def write(self, **entries: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.read() | entries, indent=2, ensure_ascii=False))
        temporary.replace(self.path)
