"""`task=download`: fetches the images of listed addresses into a folder with captions, as `data=folder` reads it."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import urljoin

import requests
from PIL import Image
from requests.adapters import HTTPAdapter

from amg.bank.sources.folder import FAILED
from amg.fetch import HEADERS, NotFetched, body, explained, offline, retry
from amg.prompts import read_addresses
from amg.prompts.text_files import json_lines
from amg.tensors import replacing
from experiments.config.schema import ConfigError, RunConfig
from experiments.run.predict import progress
from experiments.tasks.task import Task

FOLDER = "data/memorized_laion"
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
NOT_TRIED = "not tried yet"
"""Reason of an address that an interrupted command left."""
PIXELS, RESOLUTION, HOPS = 50_000_000, 32, 5
"""Pixels of an image at most, of its shorter side at least (some are 1 × 1 and count visitors); redirects at most."""


@dataclass(frozen=True)
class Download(Task):
    """Fetches the images that are missing, checks that each decodes to its end, and returns their folder.

    It holds `metadata.jsonl` (file_name, text, url), and `failed.jsonl` (url, text, reason) for the addresses that gave
    no image: gone, refused, server error, timeout, unreachable, bad address, bad type, broken, too large, too small.
    The same command tries these again.

    Args:
        path: the folder; that of data=memorized_laion by default.
        addresses: the name of a set, or a .csv or .jsonl file with columns `caption` and `url`.
        workers: addresses at a time.
        seconds: for one attempt, redirects included.
        tries: attempts where a server is slow or fails; `wait` seconds before the second, doubled each time.
        megabytes: of an image, at most.
        private: allows addresses of this machine and its own network.
    Raises:
        SystemExit: with a line, where there is no image at all, or no room for one.
    """

    path: str | None = None
    addresses: str = "memorized_laion"
    workers: int = 8
    seconds: float = 20.0
    tries: int = 3
    wait: float = 1.0
    megabytes: float = 20.0
    private: bool = False

    def run(self, config: RunConfig, command: str = "", in_sweep: bool = False) -> Path:
        for name, value, least in (
            ("workers", self.workers, 1),
            ("tries", self.tries, 1),
            ("seconds", self.seconds, 0.1),
        ):
            if value < least:
                raise ConfigError([f"task.{name} must be >= {least}, got {value}"])
        try:
            wanted = [{"text": text, "url": url} for text, url in read_addresses(self.addresses)]
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError([f"task.addresses: {error}"]) from None
        folder = Path(self.path or (config.data["path"] if config.data.get("name") == "memorized_laion" else FOLDER))
        table = folder / "metadata.jsonl"
        try:
            rows = [dict(row) for _, row in json_lines(table)] if table.is_file() else []
        except (TypeError, ValueError) as error:
            raise ConfigError([f"{table}: {error}: delete it to download anew"]) from None
        rows = [row for row in rows if "url" not in row or (folder / str(row.get("file_name"))).is_file()]
        there = {(row.get("text"), row.get("url")) for row in rows}
        missing = {i: row for i, row in enumerate(wanted) if (row["text"], row["url"]) not in there}
        if missing and offline():
            raise ConfigError(
                [f"task=download: HF_HUB_OFFLINE is set, and {len(missing)} images are missing in {folder}"]
            )
        failed = {i: row | {"reason": NOT_TRIED} for i, row in missing.items()}

        def fetch(i: int) -> tuple[int, dict]:
            url = wanted[i]["url"]
            try:
                data, suffix = retry(
                    lambda: get_image(url, self.seconds, int(self.megabytes * 1e6), self.private), self.tries, self.wait
                )
            except NotFetched as error:
                return i, wanted[i] | {"reason": str(error)}
            # no server and no list decides any part of a path
            name = f"{i:05d}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}{suffix}"
            (folder / f".{name}.part").write_bytes(data)
            os.replace(folder / f".{name}.part", folder / name)  # whole or not there
            return i, {"file_name": name} | wanted[i]

        try:
            folder.mkdir(parents=True, exist_ok=True)
            _collect(folder, table, fetch, rows, failed, self.workers)
        except OSError as error:
            raise SystemExit(f"error: {folder}: {error}; the same command continues") from None
        line = f"{len(wanted) - len(failed)} of {len(wanted)} images are in {folder}"
        line += f"; no image: {_counted(failed)}; {folder / FAILED} lists them" if failed else ""
        if len(failed) == len(wanted):
            raise SystemExit(
                f"error: {line}. Is there a network? Your own: data=folder data.path=<folder with captions>"
            )
        print(
            line + ("; the same command tries these again" if failed else "" if missing else "; nothing left to fetch")
        )
        return folder


def _collect(folder: Path, table: Path, fetch: Callable, rows: list[dict], failed: dict[int, dict], workers: int):
    """Moves each image that comes from `failed` to `rows`, and leaves both on disk, whatever happens."""
    try:
        # the threads of this pool are daemons: a process that is interrupted does not wait for slow servers
        with progress() as shown, ThreadPool(workers) as pool:
            bar = shown.add_task("training images", total=len(failed), note="")
            _write(table, rows)
            _write(folder / FAILED, failed.values())
            for i, row in pool.imap_unordered(fetch, list(failed)):
                if "reason" in row:
                    failed[i] = row
                else:
                    del failed[i]
                    rows.append(row)
                    with table.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                shown.update(bar, advance=1, note=_counted(failed))
    finally:
        _write(table, sorted(rows, key=lambda row: str(row.get("file_name"))))
        _write(folder / FAILED, failed.values())


def get_image(url: str, seconds: float, most: int, private: bool) -> tuple[bytes, str]:
    """Downloads an image.

    Args:
        seconds: for all of it, redirects included.
        most: bytes.
        private: allows addresses of this machine and its own network.
    Returns:
        its bytes, and the suffix of its format.
    Raises:
        NotFetched: where the address gives no image within these bounds.
    """
    deadline, asked = time.monotonic() + seconds, HEADERS | {"Accept": "image/*"}
    with requests.Session() as session:
        session.trust_env = False  # a list may come from strangers: no proxy, no password of this machine
        session.mount("http://", HTTPAdapter() if private else PublicOnly())
        session.mount("https://", HTTPAdapter() if private else PublicOnly())
        for _ in range(HOPS + 1):
            left = max(deadline - time.monotonic(), 0.1)
            options = {"headers": asked, "stream": True, "allow_redirects": False, "timeout": left}
            with explained(), session.get(url.strip(), **options) as response:
                if target := session.get_redirect_target(response):
                    url = urljoin(url, target)
                    continue
                response.raise_for_status()
                kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
                if not kind.startswith("image/") and kind not in UNTYPED:
                    raise NotFetched("bad type", kind)
                data = bytearray()
                for chunk in body(response):
                    data += chunk
                    if len(data) > most:
                        raise NotFetched("too large", f"more than {most:,} bytes")
                    if time.monotonic() > deadline:
                        raise NotFetched("timeout", "no whole answer in time")
                return bytes(data), image_suffix(bytes(data))
    raise NotFetched("refused", f"more than {HOPS} redirects")


def image_suffix(data: bytes) -> str:
    """Returns the suffix of an image that decodes to its end.

    Raises:
        NotFetched: for what is no image, is cut off, or has more or fewer pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(SUFFIXES)) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise NotFetched("too large", f"{width} × {height} pixels")
            if min(width, height) < RESOLUTION:
                raise NotFetched("too small", f"{width} × {height} pixels")
            image.load()
            return SUFFIXES[image.format or ""]
    except Image.DecompressionBombError as error:
        raise NotFetched("too large", str(error)) from None
    except Image.UnidentifiedImageError:
        raise NotFetched("bad type", "no JPEG, PNG, WebP, GIF or BMP") from None
    except (OSError, SyntaxError, TypeError, ValueError) as error:  # what Pillow raises for corrupt bytes
        raise NotFetched("broken", f"{type(error).__name__}: {error}"[:120]) from None


def public(address: str) -> bool:
    """Returns whether an IP address lies on the open internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


class PublicOnly(HTTPAdapter):
    """Sends nothing to an address that is not public; the connection itself is asked, since names change."""

    def get_connection_with_tls_context(self, *args, **options):
        pool = super().get_connection_with_tls_context(*args, **options)

        class Connection(pool.ConnectionCls):
            def _new_conn(self):
                connection = super()._new_conn()
                if not public(connection.getpeername()[0]):
                    connection.close()
                    raise NotFetched("bad address", f"{self.host} is no public address")
                return connection

        pool.ConnectionCls = Connection
        return pool


def _write(table: Path, rows: Iterable[dict]) -> None:
    with replacing(table) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _counted(failed: dict[int, dict]) -> str:
    counts = Counter(row["reason"].split(":")[0] for row in failed.values())
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
