"""The first command fetches what it names, from a server on this machine; killed in the middle it goes on."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from reference_iddpm import random_network
from tiny_pipelines import stable_diffusion

from amg import hub
from amg.bank import cifar10
from amg.hub import _wanted
from amg.models import ddpm
from amg.similarity import sscd_file
from experiments.tasks.run import fetch as FETCH

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
            server.paths.append((self.path, start))
        self.send_response(206 if span else status)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        for key, value in heads.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if server.halve and self.path.endswith(server.halve):
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
        server.files, server.asked, server.paths, server.halve = dict(served), [], [], None
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
    weights = [start for name, start in server.asked if name == "diffusion_pytorch_model.safetensors"]
    assert sorted(weights)[:2] == [0, 0] and len(weights) == 3  # of U-Net and VAE, and the rest of the killed one
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


LARGE = [
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
    *("text_encoder/model.safetensors", "sscd_disc_mixup.torchscript.pt", "sscd_disc_large.torchscript.pt"),
]


@pytest.fixture
def own_process(server, tmp_path, monkeypatch):
    """Calls a function in a process of its own that knows the server; `kill` ends it when half of a file is there."""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in (
        *(("ENDPOINT", address), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))),
        ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for module, name in (("amg.similarity.sscd_file", "sscd/"), ("amg.models.ddpm", "iddpm.pt")):
        monkeypatch.setattr(f"{module}.URL", f"{address}/{name}")
    monkeypatch.setattr("amg.bank.cifar10.URL", f"{address}/cifar-10-python.tar.gz")

    def call(function, kill=None):
        def told():
            try:
                function()
            except Exception as error:
                (tmp_path / "told").write_text(str(error))
                raise SystemExit(1) from None

        server.halve = kill
        server.half.clear()
        process = multiprocessing.get_context("fork").Process(target=told)
        process.start()
        if kill:
            assert server.half.wait(60)
            for _ in range(300):  # what was sent is on its way to the disk
                if any(part.stat().st_size for part in tmp_path.rglob("*.part") if part.is_file()):
                    break
                time.sleep(0.02)
            process.kill()
        process.join(120)
        server.halve = None
        return process.exitcode

    return call


def fetch_of(name, data):
    if name.startswith("sscd"):
        return lambda: sscd_file.fetch(name, len(data), hashlib.sha256(data).hexdigest())
    return lambda: hub.fetch(REPO)


@pytest.mark.parametrize("name", LARGE)
def test_each_file_goes_on_where_it_was_killed(server, served, tmp_path, own_process, name):
    data = served[("sscd/" if name.startswith("sscd") else "hub/") + name]
    fetch = fetch_of(name, data)
    assert own_process(fetch, kill=name) == -signal.SIGKILL
    assert own_process(fetch) == 0
    first, second = [start for path, start in server.paths if path.endswith(name)]
    assert first == 0 < second <= len(data) // 2
    assert any(file.is_file() and file.read_bytes() == data for file in tmp_path.rglob(Path(name).name))


@pytest.mark.parametrize("name", LARGE)
def test_other_bytes_are_refused_by_name(server, served, tmp_path, own_process, name):
    key = ("sscd/" if name.startswith("sscd") else "hub/") + name
    server.files[key] = bytes(len(served[key]))
    assert own_process(fetch_of(name, served[key])) == 1
    assert name in (tmp_path / "told").read_text()
    assert not list(tmp_path.rglob(Path(name).name))


@pytest.mark.slow
def test_table_2_fetches_and_converts_its_network_and_fetches_its_images(
    server, tmp_path, own_process, monkeypatch, command
):
    """A small network and 80 images in the layout of the published files."""
    checkpoint, archive = io.BytesIO(), io.BytesIO()
    torch.save(random_network(width=32).state_dict(), checkpoint)
    pixels = torch.randint(0, 256, (5, 16, 3072), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    batches = {f"data_batch_{i + 1}": {"data": rows, "labels": 2 * list(range(8))} for i, rows in enumerate(pixels)}
    batches |= {"test_batch": batches["data_batch_1"], "batches.meta": {"label_names": list(cifar10.CLASSES)}}
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in batches.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data := pickle.dumps(content))
            tar.addfile(entry, io.BytesIO(data))
    server.files |= {"iddpm.pt": checkpoint.getvalue(), "cifar-10-python.tar.gz": archive.getvalue()}
    for name, value in (
        ("SIZE", len(archive.getvalue())),
        ("SHA256", hashlib.sha256(archive.getvalue()).hexdigest()),
    ):
        monkeypatch.setattr(cifar10, name, value)
    # torchvision knows the digests of the published files alone
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))
    assert own_process(cifar10.fetch, kill="cifar-10-python.tar.gz") == -signal.SIGKILL
    assert own_process(ddpm.iddpm_cifar10.fetch, kill="iddpm.pt") == -signal.SIGKILL
    assert not Path("weights/iddpm_cifar10").exists() and not Path("data/cifar10/cifar-10-batches-py").exists()
    monkeypatch.setattr("experiments.tasks.run.fetch", FETCH)
    code, _, told = command(
        *("experiment=table2", "model=iddpm_cifar10", "n_samples=2", "sampler.steps=2", "trainer=cpu"),
        *("metrics.extractor=none", "download=true"),
    )
    assert code == 0, told
    assert list(tmp_path.rglob("table.md"))
    assert (tmp_path / "weights" / "iddpm_cifar10" / "unet").is_dir() and f"{len(archive.getvalue()):,} bytes" in told
    starts = [start for path, start in server.paths if path.endswith("cifar-10-python.tar.gz")]
    assert starts[0] == 0 < starts[1] and len(starts) == 2
    assert [start for path, start in server.paths if path.endswith("iddpm.pt")] == [0, 0]  # no digest is published


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
