"""Downloads from a server on this machine that answers in every way that the web does."""

import io
import json
import os
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amg import TrainingBank
from amg.fetch import NotFetched
from experiments.tasks.download import get_image, image_suffix, public

FOLDER = Path("data/memorized_laion")


def encoded(kind="JPEG", resolution=48, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = encoded(), encoded("PNG")
MOVED = {
    "/to-good": "/good",
    "/to-self": "/to-self",
    "/to-file": "file:///etc/passwd",
    "/to-ftp": "ftp://x/y",
    "/to-nonsense": "http://[x",
}


class Web(BaseHTTPRequestHandler):
    """Answers by path; `asked` counts."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, self.path.split("?")[0]
        server.asked[path] = server.asked.get(path, 0) + 1
        if path == "/flaky" and server.asked[path] < 3:
            return self.answer(b"", "text/plain", 503)
        if path == "/repaired" and not server.repaired:
            return self.answer(b"", "text/plain", 404)
        if path in MOVED:
            return self.answer(b"x" * 10, "text/plain", 302, Location=MOVED[path])
        if path == "/hang" and not server.repaired:
            while "good" not in (FOLDER / "metadata.jsonl").read_text():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C, while this answer is awaited
            return server.ended.wait(60)
        if path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (JPEG[:100], JPEG[100:], b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            return
        if path == "/drip":
            self.answer(b"", "image/jpeg", length=1000)
            while not server.ended.wait(0.05):
                self.wfile.write(b"x")
            return
        body, kind, extra = {
            "/good": (JPEG, "image/jpeg", {}),
            "/flaky": (PNG, "image/png", {}),
            "/repaired": (encoded("PNG", seed=1), "image/png", {}),
            "/hang": (PNG, "image/png", {}),
            "/untyped": (PNG, "application/octet-stream", {}),
            "/x.sh": (PNG, "image/png", {}),
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
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.asked, server.repaired, server.ended = {}, False, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def download(server, command, tmp_path):
    """Runs task=download over paths of the server, or whole addresses."""

    def call(*paths, keys=()):
        rows = (f"{path.strip('/')},{path if ':' in path else server.url + path}\n" for path in paths)
        (tmp_path / "list.csv").write_text("caption,url\n" + "".join(rows))
        fast = ["task.private=true", "task.wait=0.01", "task.seconds=2"]
        return command("task=download", "task.addresses=list.csv", *fast, *keys)

    return call


def rows(name):
    return {row["text"]: row for row in map(json.loads, (FOLDER / name).read_text().splitlines())}


def test_an_image_is_kept_as_it_came_under_a_name_of_ours(server, download):
    paths = ["/good", "/untyped", "/to-good", "/evil%20name/../../x.sh", "/flaky", "/chunked"]
    assert download(*paths)[0] == 0
    done = rows("metadata.jsonl")
    assert list(done) == [path[1:] for path in paths]
    assert all(re.fullmatch(r"0000\d-[0-9a-f]{8}\.(jpg|png)", row["file_name"]) for row in done.values())
    assert (FOLDER / done["good"]["file_name"]).read_bytes() == JPEG and done["good"]["url"] == f"{server.url}/good"
    assert server.asked["/flaky"] == 3 and rows("failed.jsonl") == {}
    assert len(list(FOLDER.iterdir())) == 6 + 2


def test_each_other_answer_has_its_reason_and_leaves_no_file(server, download):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/"
    expected = {
        "/nothing": ("gone: 404", 1),
        "/secret": ("refused: 403", 1),
        "/html": ("bad type: text/html", 1),
        "/lying": ("bad type: no JPEG", 1),
        "/truncated": ("broken: .*truncated", 1),
        "/early": ("server error: IncompleteRead.*100", 2),
        "/big": ("too large: more than 20,000 bytes", 1),
        "/unsized": ("too large: more than 20,000 bytes", 1),
        "/pixel": ("too small: 1 × 1 pixels", 1),
        "/drip": ("timeout", 2),
        "/to-self": ("refused: more than 5 redirects", 6),
        "/to-file": ("bad address", 1),
        "/to-ftp": ("bad address", 1),
        "/to-nonsense": ("bad address", 1),
        nobody: ("unreachable: ConnectionRefused", None),
        "file:///etc/passwd": ("bad address", None),
        "data:image/png;x": ("bad address", None),
        "http://": ("bad address", None),
        "x:y.jpg": ("bad address", None),
        "http://a:b:c/": ("bad address", None),
    }
    keys = ["task.tries=2", "task.megabytes=0.02", "task.seconds=0.5"]
    assert download("/good", *expected, keys=keys)[0] == 0
    failed = rows("failed.jsonl")
    assert len(failed) == len(expected) and list(rows("metadata.jsonl")) == ["good"]
    for path, (reason, asked) in expected.items():
        assert re.match(reason, failed[path.strip("/")]["reason"]), failed[path.strip("/")]
        assert server.asked.get(path) == asked, path
    assert len(list(FOLDER.iterdir())) == 1 + 2


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_this_machine_is_asked_only_where_that_is_allowed(server, scheme, host):
    with pytest.raises(NotFetched, match="bad address: .* is no public address"):
        get_image(f"{scheme}://{host}:{server.server_port}/good", 5.0, 10**6, private=False)
    assert server.asked == {}


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "224.0.0.1", "fe80::1%lo", "fd00::1"]
)
def test_private_link_local_and_group_addresses_are_not_public(address):
    assert not public(address)
    assert public("93.184.215.14") and public("2606:2800:21f:cb07::1")


def test_images_of_too_many_or_too_few_pixels_are_refused():
    assert image_suffix(encoded("PNG", 32)) == ".png"
    strip = io.BytesIO()
    Image.new("RGB", (500, 31)).save(strip, "PNG")
    with pytest.raises(NotFetched, match="too small: 500 × 31 pixels"):
        image_suffix(strip.getvalue())
    for resolution in (8_000, 60_000):  # beyond our limit before it is decoded, and beyond Pillow's
        bomb = bytearray(encoded("GIF", 48))
        bomb[6:10] = resolution.to_bytes(2, "little") * 2
        with pytest.raises(NotFetched, match="too large"):
            image_suffix(bytes(bomb))


def test_the_task_counts_lists_and_tries_only_what_failed_again(server, download):
    paths = ["/good", "/nothing", "/repaired", "/html", "/flaky", "/pixel"]
    code, told, _ = download(*paths)
    assert code == 0 and "2 of 6 images are in data/memorized_laion; no image: 2 gone, 1 bad type, 1 too small" in told
    assert "data/memorized_laion/failed.jsonl lists them; the same command tries these again" in told
    server.repaired, first = True, dict(server.asked)
    assert "3 of 6 images are in data/memorized_laion; no image: 1 gone, 1 bad type, 1 too small" in download(*paths)[1]
    again = {path for path in server.asked if server.asked[path] > first[path]}
    assert again == {"/nothing", "/repaired", "/html", "/pixel"}
    bank = TrainingBank.from_folder(FOLDER, size=8, cache=None)
    assert bank.captions == ["good", "repaired", "flaky"]  # in the order of the list
    assert bank.note == "3 of 6 listed images"


def test_a_vanished_image_is_fetched_again_and_rows_of_others_stay(server, download):
    FOLDER.mkdir(parents=True)
    (FOLDER / "mine.png").write_bytes(PNG)
    (FOLDER / "metadata.jsonl").write_text('{"image": "mine.png", "caption": "mine"}')
    assert download("/good")[0] == 0
    next(FOLDER.glob("*.jpg")).unlink()
    assert "1 of 1 images" in download("/good")[1] and server.asked["/good"] == 2
    assert sorted(TrainingBank.from_folder(FOLDER, size=8, cache=None).captions) == ["good", "mine"]
    assert "nothing left to fetch" in download("/good")[1] and server.asked["/good"] == 2


def test_an_interrupted_download_stops_at_once_and_continues(server, download):
    paths, keys = ("/good", "/hang", "/repaired"), ["task.seconds=60", "task.workers=1"]
    start = time.monotonic()
    code, _, told = download(*paths, keys=keys)
    assert code == 130 and "continues from here" in told
    assert time.monotonic() - start < 30  # without waiting for the server, which takes 60 seconds
    assert [row["reason"] for row in rows("failed.jsonl").values()] == ["not tried yet"] * 2
    assert TrainingBank.from_folder(FOLDER, cache=None).note == "1 of 3 listed images"
    server.repaired = True
    assert download(*paths)[0] == 0
    assert server.asked["/good"] == 1 and list(rows("metadata.jsonl")) == ["good", "hang", "repaired"]


def test_a_killed_download_is_counted_right(download):
    """Its list of failures is that of its start."""
    assert download("/good", "/nothing")[0] == 0
    good = {key: rows("metadata.jsonl")["good"][key] for key in ("url", "text")}
    with (FOLDER / "failed.jsonl").open("a") as file:
        file.write(json.dumps(good | {"reason": "not tried yet"}) + "\n")
    assert TrainingBank.from_folder(FOLDER, cache=None).note == "1 of 2 listed images"


def test_where_nothing_can_be_fetched_the_task_fails_in_a_line(download, monkeypatch):
    with pytest.raises(SystemExit, match="error: 0 of 2 images are in place; no image: 2 gone; place/failed.jsonl"):
        download("/a", "/b", keys=["task.path=place"])
    with pytest.raises(SystemExit, match="error: list.csv: .*; the same command continues"):
        download("/good", keys=["task.path=list.csv"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set, and 1 images are missing" in download("/good")[2]


@pytest.mark.parametrize(
    "argument, said",
    [
        ("task.addresses=none.csv", "task.addresses: there is no file none.csv"),
        ("task.workers=0", "task.workers must be >= 1, got 0"),
        ("task.secnds=3", "did you mean seconds?"),
        ("task.path=bad", "bad/metadata.jsonl, line 2: no JSON"),
    ],
)
def test_mistakes_are_told_before_anything_is_fetched(argument, said, command, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metadata.jsonl").write_text("{}\nx\n")
    code, _, told = command("task=download", argument)
    assert code == 2 and said in told and [file.name for file in tmp_path.iterdir()] == ["bad"]


def test_without_images_the_first_command_tells_all_that_is_missing_and_the_ways_on(command, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    code, _, told = command("guidance=full", "model=sd", "model.source=nobody/nothing")
    lines = told.splitlines()
    assert code == 2
    assert [line.split(":")[1].strip() for line in lines] == ["model", "data.path", "similarity.path", "judge.path"]
    assert all(way in lines[1] for way in ("task=download", "data=folder data.path=", "model=closed_form"))
    assert list(tmp_path.iterdir()) == []
