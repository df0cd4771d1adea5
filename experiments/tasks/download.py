"""`task=download`: fetches the training pictures of known prompts, which are not ours to ship."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amg.bank.sources.fetch import Address, Fetcher
from amg.bank.sources.manifest import DONE, Manifest
from amg.bank.sources.memorized_laion import FOLDER
from amg.bank.sources.web import Limits
from amg.prompts import read_addresses
from experiments.config.schema import ConfigError, RunConfig


def download_run(
    run: RunConfig,
    path: str | None = None,
    addresses: str = "memorized_laion",
    workers: int = 8,
    seconds: float = 20.0,
    tries: int = 3,
    wait: float = 1.0,
    megabytes: float = 20.0,
    private: bool = False,
) -> Path:
    """Fetches what is missing, checks each picture, and notes what became of each address; returns the folder.

    Addresses rot: what cannot be fetched is counted and listed, and the same command tries it again.

    Args:
        path: the folder; that of data=memorized_laion by default.
        addresses: the name of a set, or a .csv or .jsonl file with columns `caption` and `url`.
        workers: addresses at a time.
        seconds: for one try, redirects included.
        tries: for time-outs and failing servers; `wait` seconds before the second, doubled each time.
        megabytes: of a picture, at most.
        private: allows addresses of this machine and its own network.
    Raises:
        SystemExit: with a line, where not one picture could be fetched.
    """
    for name, value, least in (("workers", workers, 1), ("tries", tries, 1), ("seconds", seconds, 0.1)):
        if value < least:
            raise ConfigError([f"task.{name} must be >= {least}, got {value}"])
    try:
        pairs = read_addresses(addresses)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([f"task.addresses: {error}"]) from None
    folder = Path(path or _of_data(run) or FOLDER)
    limits = Limits(seconds=seconds, bytes=int(megabytes * 1e6), private=private)
    manifest = Manifest(folder)
    try:
        before = manifest.read()[1]
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    wanted = [Address(i, prompt, url) for i, (prompt, url) in enumerate(pairs)]
    missing = [address for address in wanted if manifest.there(before.get((address.prompt, address.url))) is None]
    if missing:
        manifest.begin(len(pairs))
        for part in folder.glob(".*.part"):  # what a killed process left
            part.unlink()
        _fetch(Fetcher(folder, limits, tries, wait, workers), missing, manifest)
    _tell(manifest, wanted, len(missing))
    return folder


def _of_data(run: RunConfig) -> str | None:
    return run.data["path"] if run.data.get("name") == "memorized_laion" else None


def _fetch(fetcher: Fetcher, missing: list[Address], manifest: Manifest) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        bar = progress.add_task("training pictures", total=len(missing), note="")
        found: Counter[str] = Counter()
        for entry in fetcher.all(missing):
            manifest.add(entry)
            found[entry.status] += 1
            progress.update(bar, advance=1, note=", ".join(f"{n} {status}" for status, n in found.most_common()))


def _tell(manifest: Manifest, wanted: list[Address], tried: int) -> None:
    """Counts, the place of the list, and what to do next."""
    known = manifest.read()[1]
    entries = [known[key] for address in wanted if (key := (address.prompt, address.url)) in known]
    there = [entry for entry in entries if manifest.there(entry) is not None]
    failed = Counter(entry.status for entry in entries)
    del failed[DONE]
    line = f"{len(there)} of {len(wanted)} pictures are in {manifest.folder}"
    if failed:
        line += f"; no picture: {', '.join(f'{n} {status}' for status, n in failed.most_common())}"
    if not there:
        raise SystemExit(f"error: {line}; each is listed in {manifest.path}. Is there a network? data.path also takes "
                         "pictures from elsewhere: data=folder data.path=<folder with captions>")  # fmt: skip
    print(line if tried else f"{line}; nothing left to fetch")
    if failed:
        print(f"each address and what became of it: {manifest.path}; the same command tries these again")
