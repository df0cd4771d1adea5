"""Downloads against a server on this machine that answers in every way that the web does."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amg.bank.sources import web
from amg.bank.sources.fetch import Address, Fetcher, checked
from amg.bank.sources.manifest import Manifest
from amg.bank.sources.memorized_laion import memorized_laion_bank
from amg.bank.sources.web import Limits, Refusal, get, public
from experiments.cli import main

LIMITS = Limits(seconds=1.0, bytes=20_000, private=True)


def encoded(kind="JPEG", side=48, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = encoded(), encoded("PNG")


class Web(BaseHTTPRequestHandler):
    """Answers by path; `asked` counts."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, self.path.split("?")[0]
        server.asked[path] = server.asked.get(path, 0) + 1
        if path == "/flaky" and server.asked[path] < 3:
            return self.answer(b"", "text/plain", 503)
        if path == "/repaired" and not server.repaired:
            return self.answer(b"", "text/plain", 404)
        if path.startswith("/to"):
            return self.answer(b"", "text/plain", 302, Location=server.moved[path])
        if path == "/hang" and not server.repaired:
            time.sleep(300)
        if path == "/drip":
            self.answer(b"", "image/jpeg", length=1000)
            for _ in range(30):
                time.sleep(0.1)
                self.wfile.write(b"x")
            return
        body, kind, extra = {
            "/good": (JPEG, "image/jpeg", {}),
            "/flaky": (PNG, "image/png", {}),
            "/repaired": (encoded("PNG", seed=1), "image/png", {}),
            "/untyped": (PNG, "application/octet-stream", {}),
            "/evil name/../../x.sh": (PNG, "image/png", {}),
            "/html": (b"<html>parked</html>", "text/html; charset=utf-8", {}),
            "/lying": (b"<html>parked</html>", "image/jpeg", {}),
            "/truncated": (JPEG[: len(JPEG) // 2], "image/jpeg", {}),
            "/early": (JPEG[:100], "image/jpeg", {"length": len(JPEG)}),
            "/big": (b"x" * 30_000, "image/jpeg", {}),
            "/unsized": (b"x" * 30_000, "image/jpeg", {"length": None}),
            "/pixel": (encoded("GIF", 1), "image/gif", {}),
            "/secret": (b"", "text/plain", {"status": 403}),
        }.get(path, (b"", "text/plain", {"status": 404}))
        self.answer(body, kind, **extra)

    def answer(self, body, kind, status=200, length="own", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == "own" else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.asked, server.repaired = {}, False
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.moved = {
            "/to-good": "/good",
            "/to-self": "/to-self",
            "/to-file": "file:///etc/passwd",
            "/to-ftp": "ftp://x/y",
        }
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def fetched(server, folder, *paths, **options):
    """Status by path."""
    addresses = [Address(i, path, server.url + path) for i, path in enumerate(paths)]
    fetcher = Fetcher(folder, **({"limits": LIMITS, "wait": 0.01} | options))
    return {entry.prompt: entry for entry in fetcher.all(addresses)}


def test_a_good_picture_is_kept_as_it_came_under_a_name_of_ours(server, tmp_path):
    entries = fetched(server, tmp_path, "/good", "/untyped", "/to-good", "/evil%20name/../../x.sh")
    good = entries["/good"]
    assert (good.status, good.bytes) == ("done", len(JPEG)) and (tmp_path / good.file).read_bytes() == JPEG
    assert [entries[path].status for path in ("/untyped", "/to-good")] == ["done", "done"]
    names = [file.name for file in tmp_path.iterdir()]
    assert len(names) >= 3 and all(re.fullmatch(r"0000\d-[0-9a-f]{8}\.(jpg|png)", name) for name in names)


@pytest.mark.parametrize(
    "path, status, detail, asked",
    [
        ("/nothing", "gone", "404", 1),
        ("/secret", "refused", "403", 1),
        ("/html", "bad type", "text/html", 1),
        ("/lying", "bad type", "no JPEG", 1),
        ("/truncated", "broken", "truncated", 1),
        ("/early", "server error", f"100 of {len(JPEG):,}", 2),
        ("/big", "too large", "30,000", 1),
        ("/unsized", "too large", "20,000", 1),
        ("/pixel", "too small", "1 × 1 pixels", 1),
        ("/drip", "timeout", "", 2),
        ("/to-file", "bad address", "only http and https, got 'file:", 1),
        ("/to-ftp", "bad address", "only http and https", 1),
        ("/to-self", "refused", "redirects", 6),
    ],
)
def test_every_other_answer_is_told_apart_and_leaves_no_file(server, tmp_path, path, status, detail, asked):
    start = time.monotonic()
    (entry,) = fetched(server, tmp_path, path, tries=2).values()
    assert (entry.status, detail in entry.detail) == (status, True), entry
    assert entry.status in web.STATUSES and entry.file == ""
    assert server.asked[path] == asked
    assert time.monotonic() - start < 3  # two tries of a second, and not the three seconds of a dripping server
    assert list(tmp_path.iterdir()) == []


def test_a_failing_server_is_asked_again_later(server, tmp_path):
    assert fetched(server, tmp_path, "/flaky", tries=3)["/flaky"].status == "done"
    assert server.asked["/flaky"] == 3


def test_nobody_there_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Refusal, match="unreachable: ConnectionRefused"):
        get(f"http://127.0.0.1:{port}/", LIMITS)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "data:image/png,x", "", "http://", "x.jpg", "http://a:b:c/"]
)
def test_what_is_no_web_address_is_never_opened(url):
    with pytest.raises(Refusal, match="bad address"):
        get(url, LIMITS)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_this_machine_is_asked_only_where_that_is_allowed(server, host):
    with pytest.raises(Refusal, match="bad address: .* is no public address"):
        get(f"http://{host}:{server.server_port}/good", Limits(seconds=1.0))
    assert server.asked == {}


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "224.0.0.1", "fe80::1%lo", "fd00::1"]
)
def test_private_link_local_and_group_addresses_are_not_public(address):
    assert not public(address)
    assert public("93.184.215.14") and public("2606:2800:21f:cb07::1")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    assert checked(PNG, Limits(pixels=48 * 48)) == ".png"
    with pytest.raises(Refusal, match="too large: 48 × 48 pixels"):
        checked(PNG, Limits(pixels=48 * 48 - 1))
    bomb = bytearray(encoded("GIF", 20))
    bomb[6:10] = (60_000).to_bytes(2, "little") * 2  # beyond Pillow's own limit too
    with pytest.raises(Refusal, match="too large"):
        checked(bytes(bomb), Limits())


def test_a_picture_with_a_side_of_too_few_pixels_is_refused():
    assert checked(encoded("PNG", 32), Limits()) == ".png"
    strip = io.BytesIO()
    Image.new("RGB", (500, 31)).save(strip, "PNG")
    with pytest.raises(Refusal, match="too small: 500 × 31 pixels"):
        checked(strip.getvalue(), Limits())
    assert checked(strip.getvalue(), Limits(side=31)) == ".png"


def command(server, folder, *paths):
    (folder / "list.csv").write_text("caption,url\n" + "".join(f"{path[1:]},{server.url}{path}\n" for path in paths))
    return ["task=download", "task.addresses=list.csv", "task.private=true", "task.wait=0.01", "task.seconds=1"]


def test_the_task_counts_lists_and_tries_only_what_failed_again(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asking = command(server, tmp_path, "/good", "/nothing", "/repaired", "/html", "/flaky", "/pixel")
    assert main(asking) == 0
    told = capsys.readouterr().out
    assert "2 of 6 pictures are in data/memorized_laion; no picture: 2 gone, 1 bad type, 1 too small" in told
    assert "each address and what became of it: data/memorized_laion/manifest.jsonl" in told
    server.repaired, first = True, dict(server.asked)
    assert main(asking) == 0
    told = capsys.readouterr().out
    assert "3 of 6 pictures are in data/memorized_laion; no picture: 1 gone, 1 bad type, 1 too small" in told
    again = {path for path in server.asked if server.asked[path] > first[path]}
    assert again == {"/nothing", "/repaired", "/html", "/pixel"}
    assert sorted(memorized_laion_bank(size=8).captions) == ["flaky", "good", "repaired"]
    assert memorized_laion_bank(size=8).note == "training pictures of 3 of 6 memorized prompts"


def test_where_nothing_can_be_fetched_the_task_fails_in_a_line(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: 0 of 2 pictures are in place; no picture: 2 gone; each is listed in"):
        main([*command(server, tmp_path, "/a", "/b"), "task.path=place"])


@pytest.mark.parametrize(
    "argument, said",
    [
        ("task.addresses=none.csv", "task.addresses: there is no file none.csv"),
        ("task.workers=0", "task.workers must be >= 1, got 0"),
        ("task.secnds=3", "did you mean seconds?"),
    ],
)
def test_mistakes_are_told_before_anything_is_fetched(argument, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["task=download", argument]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_download_stops_at_once_and_goes_on_where_it_stood(server, tmp_path, monkeypatch):
    run = str(Path(__file__).parents[1] / "run.py")
    asking = command(server, tmp_path, "/good", "/hang", "/repaired")
    process = subprocess.Popen(
        [sys.executable, run, *asking, "task.seconds=300"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    manifest, limit = Manifest(tmp_path / "data" / "memorized_laion"), time.monotonic() + 300
    while len(manifest.read()[1]) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)  # waiting for the server would take 300 seconds
    assert process.returncode == 130 and "continues from here" in told and "Traceback" not in told
    assert {json.loads(line).get("status") for line in manifest.path.read_text().splitlines()} == {None, "done", "gone"}
    asked, server.repaired = server.asked["/good"], True
    monkeypatch.chdir(tmp_path)
    assert main(asking) == 0
    assert server.asked["/good"] == asked and {prompt for prompt, _ in manifest.read()[1]} == {
        "good",
        "hang",
        "repaired",
    }
