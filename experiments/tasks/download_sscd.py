"""`task=download_sscd`: fetches SSCD's published files, which are not ours to ship. It runs nothing of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from amg.bank.sources.web import AGAIN, Limits, Refusal, stream
from amg.similarity.sscd import SSCD
from amg.similarity.sscd_file import FILE, SHA256, SIZE, URL, mismatch, url
from amg.tensors import sha256_of
from experiments.config.bind import every, locate
from experiments.config.schema import ConfigError, RunConfig

ASKED = {"User-Agent": "memorization-free-diffusion (research; SSCD's published files)", "Accept": "*/*"}


def download_sscd_run(
    run: RunConfig,
    address: str = URL,
    seconds: float = 3600.0,
    silence: float = 30.0,
    tries: int = 3,
    wait: float = 1.0,
    megabytes: float = 500.0,
    private: bool = False,
    in_sweep: bool = False,
) -> list[Path]:
    """Fetches the files of `similarity` and `judge` where they are SSCD, as in model=sd; returns their paths.

    Where neither is, the file that `similarity=sscd` takes by default.

    A file takes its place when it is whole and has the `size` and `sha256` of its configuration; what is there and
    right is left alone. With a known digest an interrupted download goes on where it stood.

    Args:
        address: the folder on the web that holds the published files.
        seconds: for one try.
        silence: seconds without a byte after which a try is given up.
        tries: for time-outs and failing servers; `wait` seconds before the second, doubled each time.
        megabytes: of a file whose size is not known, at most.
        private: allows addresses of this machine and its own network.
    Raises:
        SystemExit: with a line, where a file could not be fetched.
    """
    if in_sweep:
        raise ConfigError(["task=download_sscd: not in a sweep or with experiment=…; fetch first, then draw"])
    for name, value, least in (("tries", tries, 1), ("seconds", seconds, 0.1), ("silence", silence, 0.1)):
        if value < least:
            raise ConfigError([f"task.{name} must be >= {least}, got {value}"])
    wanted = list(_wanted(run)) or [("similarity", Path(FILE), SIZE, SHA256)]
    for key, path, size, sha256 in wanted:
        most = int(megabytes * 1e6) if size is None else size
        limits = Limits(seconds=seconds, bytes=most, private=private, silence=silence)
        try:
            _one(path, url(path, address), size, sha256, limits, tries, wait)
        except Refusal as refusal:
            again = "; the same command continues" if sha256 and refusal.status in AGAIN else ""
            reason = f"{refusal}{again}"
        except Timeout:
            reason = "another process is fetching it"
        except OSError as error:
            reason = f"{error.strerror or error} ({error.filename or path})"
        except ValueError as error:
            reason = str(error)
        else:
            continue
        raise SystemExit(f"error: {key}.path: {path} was not fetched from {url(path, address)}: {reason}")
    return [path for _, path, _, _ in wanted]


def _wanted(run: RunConfig) -> Iterator[tuple[str, Path, int | None, str | None]]:
    """Key, path, size and digest of each SSCD that the run names, stages of a search in two included."""
    for group in ("similarity", "judge"):
        for key, node in every(group, getattr(run, group)):
            if locate(node["_target_"]) is SSCD:
                yield key, Path(node.get("path", FILE)), node.get("size"), node.get("sha256")


def _one(path: Path, source: str, size: int | None, sha256: str | None, limits: Limits, tries: int, wait: float):
    """Makes sure that one file is there and right.

    Raises:
        Refusal, OSError, ValueError: why not.
        Timeout: where another process is at it.
    """
    if path.is_dir():
        raise ValueError("there is a folder of that name")
    if path.is_file():
        wrong = mismatch(path, size, sha256)
        if not wrong:
            print(f"{path} is there{' and right' if sha256 else '; no digest is known to check it by'}: nothing to do")
            return
        print(f"{path} {wrong}: it will be replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, lock = path.with_name(f"{path.name}.part"), path.with_name(f".{path.name}.lock")
    resume = sha256 is not None  # else nothing would tell halves of two versions from a whole
    with FileLock(lock, timeout=0):
        try:
            for attempt in range(1, tries + 1):
                try:
                    _fetch(part, source, size, resume, limits)
                    break
                except Refusal as refusal:
                    if refusal.status not in AGAIN or attempt == tries:
                        raise
                time.sleep(wait * 2 ** (attempt - 1))
            wrong = mismatch(part, size, sha256)
            if wrong:
                part.unlink()
                raise ValueError(f"it {wrong}; what came was thrown away")
            digest = sha256_of(part)
            os.replace(part, path)  # whole or not there
        finally:
            if not resume:
                part.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    known = "as expected" if sha256 else "which was not known before"
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}, {known}")


def _fetch(part: Path, source: str, size: int | None, resume: bool, limits: Limits) -> None:
    """Appends to `part` what it lacks, or begins it anew."""
    start = part.stat().st_size if resume and part.exists() else 0
    if size is not None and start >= size:
        if start == size:
            return
        start = 0
    head, chunks = stream(source, limits, start, ASKED)
    if head.kind == "text/html":
        raise Refusal("refused", "a page came instead of a file")
    if head.length is None and not resume:
        raise Refusal("refused", "neither a digest nor a length would tell whether all of it came")
    if head.length is not None and head.length > shutil.disk_usage(part.parent).free:
        raise ValueError(f"the disk is full: {head.length:,} bytes are needed in {part.parent.absolute()}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress, part.open("ab" if head.start else "wb") as file:
        total = None if head.length is None else head.start + head.length
        bar = progress.add_task(part.stem, total=total, completed=head.start)
        for chunk in chunks:
            file.write(chunk)
            progress.update(bar, advance=len(chunk))
