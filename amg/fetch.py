"""Files that are published elsewhere: fetched once, checked, never run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from amg.tensors import sha256_of

HEADERS = {"User-Agent": "memorization-free-diffusion (research)", "Accept-Encoding": "identity"}
AGAIN = ("server error", "timeout", "unreachable")
"""Reasons that may be gone the next time."""
T = TypeVar("T")


class NotFetched(Exception):
    """The reason why an address gave nothing, such as "gone" or "timeout", and a detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def fetch_file(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    size: int | None = None,
    tries: int = 3,
    wait: float = 1.0,
    seconds: float = 30.0,
    headers: Mapping[str, str] | None = None,
    label: str | None = None,
) -> Path:
    """Fetches a file unless it is there and right; a second process waits for the first.

    The file takes its place when it is whole and right. With a digest, an interrupted download continues from
    `<path>.part`; without one, nothing would show that the halves belong to two versions.

    Args:
        sha256, size: digest and bytes of the file, where they are known.
        tries: attempts while the connection or the server fails.
        wait: seconds before the second attempt, doubled each time.
        seconds: silence after which an attempt ends.
        headers: more of them, e.g. a token; another server that the first one names is not told it.
        label: name of the file in messages; that of the path by default.
    Returns:
        path.
    Raises:
        NotFetched: where the address gives nothing.
        FileNotFoundError: where the file is missing and `HF_HUB_OFFLINE` is set.
        ValueError: for an answer that is not the expected file; a file that is in place stays.
    """
    import pooch
    from filelock import FileLock

    path = Path(path)
    part, lock = path.with_name(f"{path.name}.part"), path.with_name(f".{path.name}.lock")
    if path.is_dir():
        raise ValueError("there is a folder of that name")

    def download(source: str, target: str, _: Any) -> None:
        if not sha256:
            part.unlink(missing_ok=True)
        retry(lambda: _append(source, part, size, seconds, bool(sha256), headers, label or path.name), tries, wait)
        os.replace(part, target)

    pooch.get_logger().setLevel("WARNING")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            if wrong := mismatch(path, size, sha256) if path.is_file() else "is missing":
                if offline():
                    raise FileNotFoundError(f"{path} {wrong}, and HF_HUB_OFFLINE forbids to fetch {url}")
                if path.is_file() and not sha256:  # pooch would take it as it is
                    raise ValueError(f"{path} {wrong}: delete it to fetch it anew")
                pooch.retrieve(url, sha256 and f"sha256:{sha256}", path.name, path.parent, downloader=download)
        finally:
            lock.unlink(missing_ok=True)
    return path


def offline() -> bool:
    """Returns whether `HF_HUB_OFFLINE` forbids downloads, as it does those from the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "TRUE", "YES")


def _append(
    url: str,
    part: Path,
    size: int | None,
    seconds: float,
    resume: bool,
    headers: Mapping[str, str] | None,
    label: str,
) -> None:
    """Downloads what a partial file lacks."""
    import requests
    from tqdm.auto import tqdm

    start = part.stat().st_size if resume and part.exists() else 0
    if start and start == size:
        return
    asked = HEADERS | dict(headers or {}) | ({"Range": f"bytes={start}-"} if start else {})
    with explained(), requests.get(url, headers=asked, stream=True, timeout=seconds) as response:
        if start and response.status_code == 416:  # nothing is left to send: the digest decides
            return
        response.raise_for_status()
        start = start if response.status_code == 206 else 0
        rest = response.headers.get("Content-Length")
        total = start + int(rest) if rest else size
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise NotFetched("refused", "a page came instead of a file")
        if not rest and not resume:
            raise NotFetched("refused", "neither a digest nor a length would show whether all of it came")
        if size is not None and total != size:
            raise NotFetched("refused", f"the server has {total:,} bytes, expected {size:,}")
        print(f"{label}: {total or 0:,} bytes from {url}", file=sys.stderr)
        bar = tqdm(desc=label, total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in body(response):
                bar.update(file.write(chunk))


def mismatch(path: Path, size: int | None, sha256: str | None) -> str:
    """Compares a file with the bytes and the digest that are expected of it, where they are given.

    Returns:
        the difference in words; "" where there is none.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes, expected {size:,}"
    if sha256 is not None and (digest := sha256_of(path)) != sha256.lower():
        return f"has SHA-256 {digest}, expected {sha256}"
    return ""


def body(response: Any) -> Iterator[bytes]:
    """Yields the bytes of an answer of `requests` as they arrive, so that a slow server can be left at any of them."""
    while chunk := response.raw.read1(1 << 16, decode_content=False):
        yield chunk


def retry(action: Callable[[], T], tries: int, wait: float) -> T:
    """Calls `action` again after a reason of AGAIN, `tries` times at most; the waits double."""
    for attempt in range(1, tries):
        try:
            return action()
        except NotFetched as error:
            if error.reason not in AGAIN:
                raise
        time.sleep(wait * 2 ** (attempt - 1))
    return action()


@contextmanager
def explained() -> Iterator[None]:
    """Raises NotFetched in the place of the errors of `requests` and urllib3."""
    import requests
    from urllib3.exceptions import HTTPError, ProtocolError

    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code
        reason = "gone" if status in (404, 410) else "server error" if status == 429 or status >= 500 else "refused"
        raise NotFetched(reason, str(status)) from None
    except (requests.RequestException, HTTPError, ValueError) as error:
        root: BaseException = error
        while root.__context__:
            root = root.__context__
        words = " ".join(f"{type(root).__name__} {root}".split())[:120]
        if isinstance(error, ValueError):  # no http(s), no host, or a redirect to nonsense
            raise NotFetched("bad address", words) from None
        if isinstance(error, requests.Timeout) or isinstance(root, TimeoutError):
            raise NotFetched("timeout", "no whole answer in time") from None
        raise NotFetched("server error" if isinstance(error, ProtocolError) else "unreachable", words) from None
