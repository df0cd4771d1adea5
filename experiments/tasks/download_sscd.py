"""`task=download_sscd`: fetches SSCD's published files, which are not ours to ship. Nothing of them is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from amg.fetch import AGAIN, NotFetched, fetch_file, mismatch
from amg.similarity.sscd import SSCD
from amg.similarity.sscd_file import FILE, SHA256, SIZE, URL, url
from amg.tensors import sha256_of
from experiments.config.bind import every, locate
from experiments.config.schema import ConfigError, RunConfig
from experiments.tasks.task import Task


@dataclass(frozen=True)
class DownloadSSCD(Task):
    """Fetches the files of `similarity` and `judge` where they are SSCD, as in model=sd; returns their paths.

    Where neither is, the file that `similarity=sscd` takes by default. Each has the `size` and `sha256` of its
    configuration. A file that is there and right is left alone; an interrupted download continues.

    Args:
        address: the folder on the web that holds the published files.
        seconds: silence after which an attempt ends.
        tries: attempts where the server is slow or fails; `wait` seconds before the second, doubled each time.
    Raises:
        SystemExit: with a line, where a file could not be fetched.
    """

    address: str = URL
    seconds: float = 30.0
    tries: int = 3
    wait: float = 1.0

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> list[Path]:
        if in_sweep:
            raise ConfigError(["task=download_sscd: not in a sweep or with experiment=…; fetch first, then draw"])
        for name, value, least in (("tries", self.tries, 1), ("seconds", self.seconds, 0.1)):
            if value < least:
                raise ConfigError([f"task.{name} must be >= {least}, got {value}"])
        files = list(_files(config)) or [("similarity", Path(FILE), SIZE, SHA256)]
        for key, path, size, sha256 in files:
            source, right = url(path, self.address), path.is_file() and not mismatch(path, size, sha256)
            try:
                fetch_file(source, path, sha256, size, self.tries, self.wait, self.seconds)
            except (NotFetched, OSError, ValueError) as error:
                again = "; the same command continues" if getattr(error, "reason", "") in AGAIN else ""
                reason = " ".join(str(error).split())
                raise SystemExit(f"error: {key}.path: {path} was not fetched from {source}: {reason}{again}") from None
            checked = "as expected" if sha256 else "no digest is known to check it by"
            done = "is there, nothing to do" if right else f"{path.stat().st_size:,} bytes, SHA-256 {sha256_of(path)}"
            print(f"{path}: {done} ({checked})")
        return [path for _, path, _, _ in files]


def _files(run: RunConfig) -> Iterator[tuple[str, Path, int | None, str | None]]:
    """Key, path, size and digest of each SSCD that the run names, stages of a search in two included."""
    for group in ("similarity", "judge"):
        for key, node in every(group, getattr(run, group)):
            if locate(node["_target_"]) is SSCD:
                yield key, Path(node.get("path", FILE)), node.get("size"), node.get("sha256")
