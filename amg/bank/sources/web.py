"""Guarded GETs: http and https only, public addresses only, in bounded time and size. They trust no answer."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

STATUSES = {
    "gone": "the server says that it is not there (404, 410)",
    "refused": "another refusal of the server (4xx)",
    "server error": "the server failed (429, 5xx), or its answer ended early",
    "timeout": "no whole answer in time",
    "unreachable": "no connection",
    "bad address": "no http(s) address, or one that is not public",
    "bad type": "an answer that is no picture",
    "broken": "a picture that cannot be decoded to its end",
    "too large": "more bytes or pixels than allowed",
    "too small": "a side of fewer pixels than allowed, as of the 1 × 1 pictures that count visitors",
}
"""Why there is no picture."""
AGAIN = ("server error", "timeout", "unreachable")
"""What may go better the next time."""
MOVED, HOPS = (301, 302, 303, 307, 308), 5
HEADERS = {
    "User-Agent": "memorization-free-diffusion (research; training pictures of published prompts)",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/*;q=0.5",
    "Accept-Encoding": "identity",
}
CHUNK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What one answer may cost, and what it must hold."""

    seconds: float = 20.0
    """For a try in all, redirects included."""
    bytes: int = 20_000_000
    pixels: int = 50_000_000
    side: int = 32
    """Pixels of a picture's shorter side, at least."""
    private: bool = False
    """Whether addresses of this machine and its own network are allowed."""
    silence: float = float("inf")
    """Seconds within which something must arrive, whatever is left of `seconds`."""


class Refusal(Exception):
    """Why an address gave no picture: a key of STATUSES and a detail in words."""

    def __init__(self, status: str, detail: str):
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


def get(url: str, limits: Limits) -> tuple[bytes, str]:
    """The body and the content type of an address; connects directly, through no proxy.

    Raises:
        Refusal: for all that can go wrong, and nothing else.
    """
    head, chunks = stream(url, limits)
    return b"".join(chunks), head.kind


@dataclass(frozen=True)
class Head:
    """What an answer says before its body."""

    kind: str
    """The content type; "" where none is said."""
    start: int
    """The byte of the file that the body begins with."""
    length: int | None
    """Bytes of the body, where they are said."""


def stream(
    url: str, limits: Limits, start: int = 0, headers: Mapping[str, str] | None = None
) -> tuple[Head, Iterator[bytes]]:
    """As `get`, with the body piece by piece, so that a large one need not fit in memory.

    Args:
        start: asks for the bytes from there on; a server may send all of them nevertheless, `Head.start` tells.
        headers: beside HEADERS, or in the place of those of the same name.
    Raises:
        Refusal: here, or while the pieces are read.
    """
    asked = HEADERS | dict(headers or {}) | ({"Range": f"bytes={start}-"} if start else {})
    pieces = _stream(url, limits, start, asked)
    return next(pieces), pieces


def _stream(url: str, limits: Limits, start: int, headers: Mapping[str, str]) -> Iterator[Any]:
    """The head of the answer, then the bytes of its body."""
    deadline = time.monotonic() + limits.seconds
    for _ in range(HOPS + 1):
        connection, target = _connection(url, limits, deadline)
        # a timeout of the socket alone would let a server drip a byte at a time for ever
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.request("GET", target, headers=dict(headers))
            answer = connection.getresponse()
            if answer.status in MOVED and answer.headers.get("Location"):
                url = urljoin(url, answer.headers["Location"])
                continue
            head = _head(answer, start, limits)
            yield head
            yield from _body(answer, limits, head)
            return
        except Refusal as refusal:
            raise _late(deadline) or refusal from None
        except TimeoutError:
            raise Refusal("timeout", f"{min(limits.seconds, limits.silence):g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: control characters in a target
            raise _late(deadline) or Refusal("unreachable", _words(error)) from None
        finally:
            watchdog.cancel()
            connection.close()
    raise Refusal("refused", f"more than {HOPS} redirects")


def public(address: str) -> bool:
    """Whether an IP address lies on the open internet."""
    found = ipaddress.ip_address(address.split("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_global and not found.is_multicast


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked: a name that is resolved twice could answer differently."""

    def __init__(self, host: str, port: int | None, tls: bool, limits: Limits, deadline: float):
        self.default_port = 443 if tls else 80
        super().__init__(host, port or self.default_port)
        self.tls, self.limits, self.deadline = tls, limits, deadline
        self.wire: socket.socket | None = None  # `sock` is let go as soon as an answer's head is read

    def connect(self) -> None:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = [address for *_, address in found if self.limits.private or public(address[0])]
        if not addresses:
            raise Refusal("bad address", f"{self.host} is no public address")
        for i, (host, port, *_) in enumerate(addresses):
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                self.sock = self.wire = socket.create_connection((host, port), min(left, self.limits.silence))
                break
            except OSError:
                if i + 1 == len(addresses):
                    raise
        if self.tls:
            # the handshake comes after the assignment, so that `cut` reaches it
            options = {"server_hostname": self.host, "do_handshake_on_connect": False}
            self.sock = self.wire = _trust().wrap_socket(self.sock, **options)
            self.sock.do_handshake()

    def cut(self) -> None:
        """Ends the connection, whatever it is waiting for."""
        try:
            if self.wire is not None:
                self.wire.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed already


def _connection(url: str, limits: Limits, deadline: float) -> tuple[_Connection, str]:
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise Refusal("bad address", _words(error)) from None
    if parts.scheme not in ("http", "https") or not host:
        raise Refusal("bad address", f"only http and https, got {url[:60]!r}")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return _Connection(host, port, parts.scheme == "https", limits, deadline), target


def _head(answer: http.client.HTTPResponse, start: int, limits: Limits) -> Head:
    if answer.status in (404, 410):
        raise Refusal("gone", str(answer.status))
    if answer.status == 429 or answer.status >= 500:
        raise Refusal("server error", str(answer.status))
    part = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    if answer.status != 200 and not (start and part):
        raise Refusal("refused", str(answer.status))
    kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
    head = Head(kind, start if part else 0, answer.length)
    if head.length is not None and head.start + head.length > limits.bytes:
        raise Refusal("too large", f"{head.start + head.length:,} bytes")
    return head


def _body(answer: http.client.HTTPResponse, limits: Limits, head: Head) -> Iterator[bytes]:
    count = 0
    while chunk := answer.read(CHUNK):
        count += len(chunk)
        if head.start + count > limits.bytes:
            raise Refusal("too large", f"more than {limits.bytes:,} bytes")
        yield chunk
    if head.length is not None and count < head.length:
        raise Refusal("server error", f"{count:,} of {head.length:,} bytes")


def _late(deadline: float) -> Refusal | None:
    """What looks like an end of the answer is the watchdog's work when time is up."""
    return Refusal("timeout", "no whole answer in time") if time.monotonic() >= deadline else None


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:120]


@cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()
