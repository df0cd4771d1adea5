"""The folder of a run: its name, what it was made of, and its use by one process at a time."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from amg.metrics.values import plain, restored
from amg.tensors import replacing
from experiments.config.schema import ConfigError, RunConfig

DECIDES = (
    "seed",
    "s0",
    "conditioning",
    "prompt",
    "prompts",
    "labels",
    "sampler",
    "decoder",
    "looks",
    "on_copy",
    "tries",
)
LATER = ("on_copy", "tries")
"""Keys that decide an image only where they are set; runs without them are those of before there were any."""
NODES = ("data", "guidance", "judge", "model", "similarity", "threshold")
MEASURES = ("n_samples", "metrics", "similarity", "judge")
"""Keys that decide a run's metrics, once its images are there."""
COUNTING = ("copy", "strict")
"""Keys of a similarity beyond which a sample counts as a copy; what is on disk may be counted with others."""
GUIDES = ("guidance", "threshold", "judge", "decoder", "looks")
TWIN = tuple(key for key in (*DECIDES, *NODES, "n_samples") if key not in GUIDES)
"""Keys that a guided run shares with its unguided twin: the same samples but for the guidance."""
CUT = "empty or cut off: delete it; the command that made it makes it anew"
DEFAULTS = {name: RunConfig.model_fields[name].default for name in ("decoder", "looks")}
"""Keys that older configurations lack."""
LAST = [name for name, field in RunConfig.model_fields.items() if field.is_required()][-1]
"""Key that a configuration ends in, unless it is cut off."""
PACKAGES = ("torch", "diffusers", "lightning", "hydra-core", "numpy")


@contextmanager
def in_folder(
    run: RunConfig,
    run_dir: Path,
    entries: Mapping[str, Any],
    nodes: Sequence[str] = NODES,
    kind: str = "records",
    draw: bool = True,
) -> Iterator[Manifest]:
    """The run's folder for this process alone, its configuration and manifest written.

    Args:
        entries: of the manifest, beside the status of what happens within.
        nodes: components that decide what is drawn, besides the keys of `DECIDES`.
        kind: the folder of its shards.
        draw: False leaves `config.yaml` as it is: it records how the images were drawn.
    Raises:
        ConfigError: where another process is in it, it holds samples of another configuration, or, without `draw`,
            none; nothing in it is changed then.
    """
    drawn = (run_dir / "config.yaml").is_file() and any((run_dir / kind).glob("*.parquet"))
    if not draw and not drawn:
        raise ConfigError([f"output_dir={run_dir}: holds no samples to measure; draw them first, with task=generate"])
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            [f"{run_dir} is in use by another process: wait for it, or choose another output_dir"]
        ) from None
    try:
        if drawn:
            same_as_before(run, run_dir, nodes, draw)
        manifest = Manifest(run_dir)
        with manifest.running(**entries):
            if draw:
                dump = yaml.safe_dump(run.model_dump(), sort_keys=False, allow_unicode=True)
                with replacing(run_dir / "config.yaml") as part:
                    part.write_text(dump, encoding="utf-8")
            yield manifest
    except OSError as error:
        if error.filename is None:  # a write to a full disk names no file
            error.filename = str(run_dir)
        raise
    finally:
        lock.release()


def same_as_before(run: RunConfig, run_dir: Path, nodes: Sequence[str], draw: bool) -> None:
    """Refuses samples of another configuration: a table over both would mean nothing."""
    before, now = drawn_with(run_dir), run.model_dump()
    free = () if draw else COUNTING
    changed = [key for key in (*DECIDES, *nodes) if _without(free, before.get(key)) != _without(free, now[key])]
    if changed:
        mend = "choose another folder or empty it" if draw else "measure them with their own"
        raise ConfigError([f"output_dir={run_dir}: holds samples of another {', '.join(changed)}; {mend}"])


def _without(keys: Sequence[str], node: Any) -> Any:
    return {key: value for key, value in node.items() if key not in keys} if isinstance(node, dict) else node


def folder(
    config: RunConfig,
    parts: Any,
    chosen: list[str | int] | None,
    nodes: Sequence[str] = NODES,
    label: str | None = None,
) -> Path:
    """`output_dir`, or a name with the hash of all that decides an image (or whatever else the nodes decide)."""
    if config.output_dir:
        return Path(config.output_dir)
    digest = _digest(config, parts, chosen, (*DECIDES, *nodes))
    return Path("runs") / config.name / f"{config.model.get('name')}-{label or config.guidance.get('name')}-{digest}"


def _digest(config: RunConfig, parts: Any, chosen: list[str | int] | None, keys: Sequence[str]) -> str:
    """A hash of these keys, of prompts, bank and weights."""
    decides = _set(config, keys)
    return hash_of([decides, chosen, parts.bank.digest(), parts.model.digest])


def hash_of(content: Any) -> str:
    """A hash of anything that JSON can hold, 10 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


def _set(config: RunConfig, keys: Sequence[str]) -> dict[str, Any]:
    """The values of some keys, without those of LATER that are not set."""
    dump = config.model_dump()
    return {key: dump[key] for key in keys if key not in LATER or dump[key] is not None}


def twin_of(config: RunConfig) -> str:
    """Returns a hash of all that a run shares with its unguided twin."""
    return hash_of([*_set(config, TWIN).values()])


def is_twin(guided: RunConfig, unguided: RunConfig) -> bool:
    """Returns whether two runs sample the same seeds and prompts, and only the first is guided."""
    if guided.guidance.get("name") == "none" or unguided.guidance.get("name") != "none":
        return False
    return twin_of(guided) == twin_of(unguided)


def facts(config: RunConfig, parts: Any, chosen: list[str | int] | None) -> dict[str, Any]:
    """Facts that a reader needs to judge a number."""
    import torch

    return {
        "name": config.name,
        "model": config.model.get("name"),
        "guidance": config.guidance.get("name"),
        "similarity": config.similarity.get("name"),
        "judge": config.judge.get("name"),
        "s0": config.s0,
        "seed": config.seed,
        "n_samples": config.n_samples,
        "measured_with": {key: value for key, value in config.model_dump().items() if key in MEASURES},
        "setting": _digest(config, parts, chosen, [key for key in (*DECIDES, *NODES) if key != "seed"]),  # groups seeds
        "twin": twin_of(config),
        "sampler": config.sampler.model_dump(),
        "bank": {"digest": parts.bank.digest(), "pictures": len(parts.bank), "note": parts.bank.note},
        "weights": parts.model.digest,
        "threshold": hash_of(config.threshold),
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {parts.model.device}, CPU threads {torch.get_num_threads()}",
    }


def configuration(run_dir: str | Path) -> RunConfig:
    """Reads how the images of an evaluated run were sampled, and what measured them last."""
    run_dir = Path(run_dir)
    return RunConfig.model_validate(drawn_with(run_dir) | Manifest(run_dir).read().get("measured_with", {}))


def drawn_with(run_dir: Path) -> dict[str, Any]:
    """`config.yaml`: how a run's samples were drawn.

    Raises:
        FileNotFoundError: where there is none.
        ConfigError: where it is not whole, as a full disk or a power cut may leave it.
    """
    file = run_dir / "config.yaml"
    try:
        drawn = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        drawn = None
    if not isinstance(drawn, dict) or LAST not in drawn:
        raise ConfigError([f"{file}: {CUT}"])
    return DEFAULTS | drawn


def read_json(file: Path) -> dict[str, Any]:
    """Reads what a command left in a file.

    Raises:
        ConfigError: where it is not whole.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError([f"{file}: {CUT}"])
    return found


class Manifest:
    """`manifest.json`: what a run is and how it went."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "manifest.json"

    def read(self) -> dict[str, Any]:
        """The entries; shares and means among the metrics are `Share` and `Mean` again."""
        if not self.path.is_file():
            return {}
        entries = read_json(self.path)
        return entries | {"metrics": restored(entries["metrics"])} if "metrics" in entries else entries

    @contextmanager
    def running(self, **entries: Any) -> Iterator[None]:
        """The status of what happens within: running, and failed with its message after an error.

        What is done stays so, whatever its table or its logger meets.
        """
        self.write(status="running", message=None, **entries)
        try:
            yield
        except Exception as error:
            with suppress(Exception):  # a full disk takes no message either
                if self.read().get("status") != "done":
                    self.write(status="failed", message=f"{type(error).__name__}: {error}")
            raise

    def write(self, **entries: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = {key: plain(value) for key, value in (self.read() | entries).items()}
        with replacing(self.path) as part:
            part.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")
