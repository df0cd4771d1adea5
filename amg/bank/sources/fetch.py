"""Fetches pictures from a list of addresses: in parallel, each checked, what is there already left alone."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from amg.bank.sources.manifest import DONE, Entry
from amg.bank.sources.web import AGAIN, Limits, Refusal, get

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
UNTYPED = ("", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True)
class Address:
    """One picture of a list."""

    index: int
    """Place in the list; it names the file."""
    prompt: str
    url: str


@dataclass(frozen=True)
class Fetcher:
    """Fetches pictures into a folder.

    Args:
        folder: where they go, as `<index>-<hash of the address>.<kind of picture>`; nothing that a server or a list
            says becomes part of a path.
        limits: of one answer.
        tries: how often what may go better is tried.
        wait: seconds before the second try, doubled each time.
        workers: addresses at a time.
    """

    folder: Path
    limits: Limits = field(default_factory=Limits)
    tries: int = 3
    wait: float = 1.0
    workers: int = 8

    def all(self, addresses: Sequence[Address]) -> Iterator[Entry]:
        """What became of each address, as it becomes known; may be left at any time.

        The workers are daemons: a process that is interrupted does not wait for slow servers.
        """
        todo: queue.SimpleQueue[Address] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Entry | Exception] = queue.SimpleQueue()
        for address in addresses:
            todo.put(address)

        def work() -> None:
            while True:
                try:
                    ready.put(self.one(todo.get_nowait()))
                except queue.Empty:
                    return
                except Exception as error:  # a full disk, for one: it belongs to the caller's thread
                    ready.put(error)
                    return

        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(min(self.workers, len(addresses))):
            threading.Thread(target=work, daemon=True).start()
        for _ in addresses:
            entry = ready.get()
            if isinstance(entry, Exception):
                raise entry
            yield entry

    def one(self, address: Address) -> Entry:
        """Fetches one picture; a refusal becomes an entry too."""
        for attempt in range(1, self.tries + 1):
            try:
                return self._save(address)
            except Refusal as refusal:
                if refusal.status not in AGAIN or attempt == self.tries:
                    return Entry(address.prompt, address.url, refusal.status, refusal.detail)
            time.sleep(self.wait * 2 ** (attempt - 1))
        raise ValueError(f"tries must be >= 1, got {self.tries}")

    def _save(self, address: Address) -> Entry:
        data, kind = get(address.url, self.limits)
        if not kind.startswith("image/") and kind not in UNTYPED:
            raise Refusal("bad type", kind)
        digest = hashlib.blake2b(address.url.encode(), digest_size=4).hexdigest()
        name = f"{address.index:05d}-{digest}{checked(data, self.limits)}"
        part = self.folder / f".{name}.{os.getpid()}.part"
        part.write_bytes(data)
        os.replace(part, self.folder / name)  # whole or not there
        return Entry(address.prompt, address.url, DONE, file=name, bytes=len(data))


def checked(data: bytes, limits: Limits) -> str:
    """The suffix of a picture that decodes to its end.

    Raises:
        Refusal: for what is no picture, is cut off, or has more or fewer pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(SUFFIXES)) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                raise Refusal("too large", f"{width} × {height} pixels")
            if min(width, height) < limits.side:
                raise Refusal("too small", f"{width} × {height} pixels")
            suffix = SUFFIXES[picture.format or ""]
            picture.load()
            return suffix
    except Image.DecompressionBombError as error:
        raise Refusal("too large", str(error)) from None
    except Image.UnidentifiedImageError:
        raise Refusal("bad type", "no JPEG, PNG, WebP, GIF or BMP") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a corrupt file
        raise Refusal("broken", f"{type(error).__name__}: {error}"[:120]) from None
