"""SSCD's file from a server on this machine: whole and right in its place, or not there and told why in a line."""

import hashlib
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amg.fetch import fetch_file
from amg.similarity.sscd_file import FILE, SHA256, SIZE
from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.build import find_files
from experiments.config.schema import ConfigError

BODY = bytes(range(256)) * 800  # nothing that could be run
DIGEST = hashlib.sha256(BODY).hexdigest()
LARGE = "sscd_disc_large.torchscript.pt"
ONE = ("model=sd", "similarity@judge=nl2", f"similarity.size={len(BODY)}", f"similarity.sha256={DIGEST}")


class Authors(BaseHTTPRequestHandler):
    """Answers as `server.way` says; `asked` lists the path and the range of each request."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, span = self.server, self.headers.get("Range", "")
        server.asked.append((self.path, span))
        way = server.way.pop(0) if server.way else "good"
        if way == "hang":
            return server.ended.wait(10)
        if way.isdigit():
            self.send_response(int(way))
            return self.end_headers()
        body = {"page": b"<html>", "other": BODY[::-1], "longer": BODY + b"x"}.get(way, BODY)
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span and way != "whole" else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "text/html" if way == "page" else "application/octet-stream")
        if way != "unsized":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : 100_000 if way == "early" else None])


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Authors) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.asked, server.way, server.ended = [], [], threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def fetch(server, command):
    def call(*keys):
        address = f"task.address=http://127.0.0.1:{server.server_port}/sscd/"
        return command("task=download_sscd", address, "task.wait=0.01", *(keys or ONE))

    return call


def left(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_fetched_checked_and_then_left_alone(server, fetch, tmp_path):
    code, told, errors = fetch()
    assert code == 0 and f"{FILE}: {len(BODY):,} bytes, SHA-256 {DIGEST} (as expected)" in told
    assert f"{FILE}: {len(BODY):,} bytes from http://127.0.0.1" in errors  # before it comes
    assert (tmp_path / FILE).read_bytes() == BODY and left(tmp_path) == [FILE]
    code, told, _ = fetch()
    assert code == 0 and f"{FILE}: is there, nothing to do (as expected)" in told
    assert server.asked == [(f"/sscd/{FILE}", "")]


def test_with_stable_diffusion_guide_and_judge_come_and_the_judge_s_digest_is_told(server, fetch):
    keys = (ONE[0], *ONE[2:], "judge.path=weights/" + LARGE)
    code, told, _ = fetch(*keys)
    assert code == 0 and f"weights/{LARGE}: {len(BODY):,} bytes, SHA-256 {DIGEST} (no digest is known to check" in told
    assert [path for path, _ in server.asked] == [f"/sscd/{FILE}", f"/sscd/{LARGE}"]
    assert f"{LARGE}: is there, nothing to do (no digest is known to check it by)" in fetch(*keys)[1]


def test_the_fine_stage_of_a_search_in_two_is_found_too(server, fetch, tmp_path):
    keys = [key.replace("similarity.", "similarity.fine.") for key in ONE]
    assert fetch(*keys, "similarity=clip_sscd", "similarity.fine.path=my.pt")[0] == 0
    assert left(tmp_path) == ["my.pt"] and server.asked == [(f"/sscd/{FILE}", "")]


def test_where_the_run_names_none_the_published_file_is_meant(server, fetch):
    with pytest.raises(SystemExit, match=f"the server has {len(BODY):,} bytes, expected {SIZE:,}"):
        fetch("task.tries=1")


@pytest.mark.parametrize("way", ["good", "whole"])
def test_an_answer_that_ends_early_is_continued(server, fetch, tmp_path, way):
    server.way = ["early", way]  # a server that sends all of it again is understood
    assert fetch()[0] == 0
    assert (tmp_path / FILE).read_bytes() == BODY and [span for _, span in server.asked] == ["", "bytes=100000-"]


def test_the_same_command_continues_what_another_left(server, fetch, tmp_path):
    server.way = ["early"]
    with pytest.raises(SystemExit, match="server error: IncompleteRead.*100000 .*; the same command continues"):
        fetch(*ONE, "task.tries=1")
    assert left(tmp_path) == [f"{FILE}.part"]
    assert fetch()[0] == 0 and left(tmp_path) == [FILE]
    (tmp_path / FILE).rename(tmp_path / f"{FILE}.part")  # stopped before it took its place
    assert fetch()[0] == 0 and left(tmp_path) == [FILE]
    assert [span for _, span in server.asked] == ["", "bytes=100000-"]


def test_without_a_digest_nothing_is_pieced_together(server, fetch, tmp_path):
    keys = (*ONE[:2], "similarity.size=null", "similarity.sha256=null")
    (tmp_path / f"{FILE}.part").write_bytes(b"of another version")
    server.way = ["early", "unsized", "page", "good"]
    with pytest.raises(SystemExit, match="refused: neither a digest nor a length would show"):
        fetch(*keys)
    with pytest.raises(SystemExit, match="refused: a page came"):
        fetch(*keys)
    assert fetch(*keys)[0] == 0 and (tmp_path / FILE).read_bytes() == BODY and left(tmp_path) == [FILE]
    assert [span for _, span in server.asked] == [""] * 4
    with pytest.raises(SystemExit, match=f"has {len(BODY):,} bytes, expected 7: delete it to fetch it anew"):
        fetch(*keys[:2], "similarity.size=7", keys[3])


@pytest.mark.parametrize(
    "way, said",
    [
        ("other", hashlib.sha256(BODY[::-1]).hexdigest()),
        ("longer", "the server has 204,801 bytes, expected 204,800"),
        ("page", "refused: a page came instead of a file"),
        ("404", "gone: 404"),
        ("403", "refused: 403"),
        ("503", "server error: 503; the same command continues"),
        ("hang", "timeout: no whole answer in time; the same command continues"),
    ],
)
def test_what_is_not_the_file_leaves_the_old_one_in_place(server, fetch, tmp_path, way, said):
    server.way = [way]
    (tmp_path / FILE).write_bytes(b"old")
    with pytest.raises(SystemExit, match="^error: similarity.path: ") as error:
        fetch(*ONE, "task.tries=1", "task.seconds=0.3")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert left(tmp_path) == [FILE] and (tmp_path / FILE).read_bytes() == b"old"
    assert fetch()[0] == 0 and (tmp_path / FILE).read_bytes() == BODY


def test_nobody_there_a_full_disk_a_folder_and_no_network_wanted_are_told_in_a_line(fetch, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SystemExit, match="was not fetched from http://127.* unreachable: ConnectionRefused"):
        fetch(*ONE, f"task.address=http://127.0.0.1:{port}", "task.tries=1")
    os.symlink("/dev/full", tmp_path / f"{FILE}.part")
    with pytest.raises(SystemExit, match="No space left on device"):
        fetch()
    (tmp_path / f"{FILE}.part").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit, match=f"{FILE} is missing, and HF_HUB_OFFLINE forbids"):
        fetch()
    (tmp_path / FILE).mkdir()
    with pytest.raises(SystemExit, match="there is a folder of that name"):
        fetch()


def test_a_second_process_waits_and_finds_the_file(server, tmp_path):
    """Threads in the place of processes: each opens the lock anew."""
    url, path = f"http://127.0.0.1:{server.server_port}/x", tmp_path / "deep" / "x"
    threads = [threading.Thread(target=fetch_file, args=(url, path, DIGEST)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == BODY and server.asked == [("/x", "")]


def test_mistakes_are_told_before_anything_is_asked(server, fetch, command):
    assert "task.tries must be >= 1, got 0" in fetch(*ONE, "task.tries=0")[2]
    code, _, told = fetch(*ONE, "-m", "guidance=none,sim")
    assert code == 2 and "task=download_sscd: not in a sweep" in told
    assert server.asked == []


def test_the_published_file_is_pinned_and_its_errors_name_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def lines(*keys):
        with pytest.raises(ConfigError) as error:
            find_files(check(compose_config(["model=sd", *keys])))
        return [line for line in error.value.lines if "sscd" in line]

    guide, judge = lines()
    assert guide.startswith(f"similarity.path: no descriptor file at {FILE}: fetch https://dl.fbaipublicfiles.com/")
    assert judge.startswith(f"judge.path: no descriptor file at {LARGE}") and "similarity@judge=nl2 needs" in judge
    assert all("`python run.py task=download_sscd`" in line for line in (guide, judge))
    (tmp_path / FILE).write_bytes(BODY)
    (tmp_path / LARGE).write_bytes(BODY)
    for choice, key in (("sscd", "similarity"), ("clip_sscd", "similarity.fine")):
        (line,) = lines(f"similarity={choice}")
        assert line == (
            f"{key}.path: {FILE} has {len(BODY):,} bytes, expected {SIZE:,}: fetch it anew by `python run.py "
            "task=download_sscd` with this run's keys of model, similarity and judge; a file of your own is taken by "
            f"{key}.path={FILE} {key}.size=null {key}.sha256=null"
        )
        node = check(compose_config(["model=sd", f"similarity={choice}"])).similarity
        assert node.get("fine", node)["sha256"] == SHA256
        assert lines(f"++{key}.size=null", f"++{key}.sha256=null", f"similarity={choice}") == []
    (line,) = lines("similarity.size=null", "similarity.sha256=null", "++judge.size=7")
    assert line.startswith(f"judge.path: {LARGE} has {len(BODY):,} bytes, expected 7") and "judge.size=null" in line
