"""The first command fetches what it names, from a server on this machine; killed in the middle it goes on."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_pipelines import stable_diffusion

from amg.hub import _wanted

REPO, REVISION = "tiny/stable-diffusion", "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[3]
DRIVER = """
import sys
import amg.similarity.sscd_file as sscd
import experiments.tasks.download as download
from requests.adapters import HTTPAdapter
address = sys.argv.pop(1)
sscd.URL = address + "/sscd/"
download.PublicOnly = HTTPAdapter  # this machine's own addresses are refused otherwise
download.read_addresses = lambda name: [(f"caption {i}", f"{address}/images/{i}.png") for i in range(4)]
from experiments.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


class Descriptor(torch.nn.Module):
    """512 numbers of unit length, as SSCD's."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(192, 512, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(
            self.project(torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1))
        )


class Published(BaseHTTPRequestHandler):
    """The hub, the authors of SSCD and some sites with images; `server.halve` names the file that is cut in two."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, path = self.server, urllib.parse.urlparse(self.path).path
        if path.startswith(f"/api/models/{REPO}/tree"):
            return self.answer(json.dumps(server.tree).encode(), body, {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/{REPO}"):
            return self.answer(json.dumps(server.listing).encode(), body, {"Content-Type": "application/json"})
        data = server.files.get(re.sub(rf"^/{REPO}/resolve/(main|{REVISION})/", "hub/", path).lstrip("/"))
        if data is None:
            return self.answer(b"", body, {}, 404)
        heads = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        self.answer(data, body, heads | ({"Content-Type": "image/png"} if path.endswith(".png") else {}))

    def answer(self, data, body, heads, status=200):
        server, name = self.server, self.path.rpartition("/")[2]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        if body:
            server.asked.append((name, start))
        self.send_response(206 if span else status)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        for key, value in heads.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if server.halve == name:
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            server.half.set()
            server.ended.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data[start:])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    stable_diffusion().save_pretrained(folder)
    files = {f"hub/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in folder.rglob("*.*")}
    files["hub/unet/diffusion_pytorch_model.fp16.safetensors"] = b"not wanted"
    torch.jit.script(Descriptor()).save(folder / "descriptor.pt")
    descriptor = (folder / "descriptor.pt").read_bytes()
    files |= {f"sscd/{name}.torchscript.pt": descriptor for name in ("sscd_disc_mixup", "sscd_disc_large")}
    for i in range(4):
        buffer = io.BytesIO()
        noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(buffer, "PNG")
        files[f"images/{i}.png"] = buffer.getvalue()
    return files


@pytest.fixture
def server(served):
    with ThreadingHTTPServer(("127.0.0.1", 0), Published) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.files, server.asked, server.halve = dict(served), [], None
        server.half, server.ended = threading.Event(), threading.Event()
        siblings, server.tree = [], []
        for name, data in served.items():
            if name.startswith("hub/"):
                entry = {"rfilename": name.removeprefix("hub/"), "size": len(data), "blobId": "0" * 40}
                if name.endswith(".safetensors"):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 100}
                siblings.append(entry)
                lfs = {"lfs": entry["lfs"]} if "lfs" in entry else {}
                server.tree.append(
                    {"type": "file", "path": entry["rfilename"], "size": len(data), "oid": "0" * 40} | lfs
                )
        server.listing = {
            "id": REPO,
            "modelId": REPO,
            "sha": REVISION,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


def start(server, folder, served, *more):
    address = f"http://127.0.0.1:{server.server_address[1]}"
    data = served["sscd/sscd_disc_mixup.torchscript.pt"]
    arguments = [
        *("guidance=full", "model=sd", f"model.source={REPO}", "n_samples=2", "sampler.steps=2", "trainer=cpu"),
        *("data.size=32", "metrics.extractor=none", "metrics.scorer=none", "output_dir=out", "prompt=a cat"),
        *(f"similarity.size={len(data)}", f"similarity.sha256={hashlib.sha256(data).hexdigest()}", *more),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "AMG_CACHE": str(folder / "cache"),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", DRIVER, address, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_one_command_from_nothing_to_a_table_killed_in_each_download(server, served, tmp_path):
    for name in ("diffusion_pytorch_model.safetensors", "sscd_disc_mixup.torchscript.pt", "2.png"):
        server.halve = name
        server.half.clear()
        process = start(server, tmp_path, served)
        assert server.half.wait(500), process.communicate(timeout=20)[0]
        for _ in range(600):  # what was sent is on its way to the disk
            part = tmp_path / f"{name}.part"
            if not name.startswith("sscd") or part.is_file() and part.stat().st_size:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.halve = None
    process = start(server, tmp_path, served)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 0, told
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "table.md").is_file()
    sscd = [start for name, start in server.asked if name == "sscd_disc_mixup.torchscript.pt"]
    assert sscd[0] == 0 < sscd[1] and len(sscd) == 2
    assert not any("fp16" in name for name, _ in server.asked)
    assert len(list((tmp_path / "data" / "memorized_laion").glob("*.png"))) == 4


@pytest.mark.slow
def test_sizes_come_first_and_a_wrong_digest_is_refused_by_name(server, served, tmp_path):
    size = sum(len(data) for name, data in served.items() if name.startswith("hub/") and "fp16" not in name)
    unet = "hub/unet/diffusion_pytorch_model.safetensors"
    server.files[unet] = bytes(len(served[unet]))
    server.files["sscd/sscd_disc_mixup.torchscript.pt"] = bytes(len(served["sscd/sscd_disc_mixup.torchscript.pt"]))
    process = start(server, tmp_path, served)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert f"{REPO}: {size:,} bytes in " in told and "sscd_disc_large.torchscript.pt: " in told
    assert f"error: model: not fetched: {REPO}: unet/diffusion_pytorch_model.safetensors has not the SHA-256" in told
    assert "error: similarity: not fetched: sscd_disc_mixup.torchscript.pt from " in told
    assert not (tmp_path / "sscd_disc_mixup.torchscript.pt").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nothing_is_asked_where_downloads_are_off(server, served, tmp_path):
    process = start(server, tmp_path, served, "download=false")
    told = process.communicate(timeout=300)[0]
    published = {name.rpartition("/")[2] for name in served} | {"main", REVISION}
    assert process.returncode == 2 and not [name for name, _ in server.asked if name in published]
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in lines] == ["model", "data.path", "similarity.path", "judge.path"]


def test_files_of_other_formats_and_variants_are_left_out():
    index = {"unet": ["a", "b"], "vae": ["a", "b"], "safety_checker": ["a", "b"], "text_encoder_3": [None, None]}
    own = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    shards = ["vae/model-00001-of-00002.safetensors", "vae/model.safetensors.index.json"]
    other = [
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "README.md"),
        *("safety_checker/model.safetensors", "v1-4.ckpt", "unet/diffusion_pytorch_model.non_ema.safetensors"),
        *("text_encoder_3/model.safetensors", "vae/model.fp16-00001-of-00002.safetensors"),
        "vae/model.safetensors.index.fp16.json",
    ]
    assert [name for name in [*own, *shards, *other] if _wanted(name, index, None)] == [*own, *shards]
    assert _wanted("unet/diffusion_pytorch_model.fp16.safetensors", index, "fp16")
    assert not _wanted("unet/diffusion_pytorch_model.safetensors", index, "fp16")
