"""Models of the hub: what of them is missing on disk, fetched with its size first, and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from amg.fetch import NotFetched, fetch_file, offline

WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".onnx", ".pb", ".h5")
LEFT_OUT = ("safety_checker",)


def folder_of(source: str | Path) -> Path | None:
    """Returns the folder of a model that is whole on disk, by the hub's cache or a path; None if it is not."""
    from huggingface_hub import snapshot_download

    if Path(source).is_dir():
        return Path(source)
    try:
        folder = Path(snapshot_download(str(source), local_files_only=True))
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if all(_whole(folder / part) for part in parts(index)) else None


def parts(index: dict[str, Any]) -> list[str]:
    """Returns the components of a `model_index.json` that have a folder."""
    named = {name: part for name, part in index.items() if isinstance(part, list) and part != [None, None]}
    return [name for name in named if name not in LEFT_OUT]


def _whole(folder: Path) -> bool:
    """Tells whether a component is there: its configuration, and every shard of its weights if it has any."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    for listing in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values())
        if not all((folder / shard).is_file() for shard in shards):
            return False
    return not (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))


def fetch(source: str | Path | Any, variant: str | None = None) -> None:
    """Fetches what is missing of a pipeline that is named on the hub, in safetensors; an interrupted one goes on.

    Args:
        source: a name on the hub; for a folder, or a pipeline in memory, nothing is done.
        variant: of the weights, e.g. `fp16`.
    Raises:
        NotFetched: where the hub does not give it.
        ValueError: for a file whose SHA-256 is not the hub's, by name.
    """
    if not isinstance(source, (str, Path)) or folder_of(source):
        return
    if not reachable():
        raise NotFetched("unreachable", f"{source} is not on disk, and the hub is out of reach")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with _explained(source):
        info = HfApi().model_info(str(source), files_metadata=True)
        index = json.loads(Path(hf_hub_download(str(source), "model_index.json")).read_text())
        files = {file.rfilename: file for file in info.siblings or () if _wanted(file.rfilename, index, variant)}
        size = sum(file.size or 0 for file in files.values())
        print(f"{source}: {size:,} bytes in {len(files)} files from the hub", file=sys.stderr)
    for name, file in files.items():
        if file.lfs is not None:
            _fetch_blob(str(source), name, info.sha, file.lfs.sha256, file.size)
    with _explained(source):
        snapshot_download(str(source), allow_patterns=list(files))


def _fetch_blob(source: str, name: str, revision: str, sha256: str, size: int | None) -> None:
    """Fetches a large file to its place in the hub's cache; the hub's own client begins an interrupted one anew."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blob = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "blobs" / sha256
    try:
        url = hf_hub_url(source, name, revision=revision)
        fetch_file(url, blob, sha256, size, headers=build_hf_headers(), label=name)
    except NotFetched as error:
        raise NotFetched(error.reason, f"{source}: {name}: {error}") from None
    except ValueError:
        raise ValueError(f"{source}: {name} has not the SHA-256 that the hub names; try again later") from None


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise NotFetched("refused", f"{source}: {str(error).strip().splitlines()[0]}") from None
    except Exception as error:  # of whichever HTTP library the hub's client is built on; no such name, a full disk
        raise NotFetched("unreachable", f"{source}: {' '.join(str(error).split())[:200]}") from None


def _wanted(name: str, index: dict[str, Any], variant: str | None) -> bool:
    """Tells whether a file belongs to the pipeline that is loaded: no other format, no other variant."""
    folder, _, file = name.rpartition("/")
    if name == "model_index.json":
        return True
    if folder not in parts(index):
        return False
    if not file.endswith(WEIGHTS):
        return ".index." not in file or file.endswith(f".index.{variant}.json" if variant else ".index.json")
    stem = file.removesuffix(".safetensors")
    if stem == file or "non_ema" in stem:
        return False
    own = stem.partition("-0")[0]  # of a shard
    return own.endswith(f".{variant}") if variant else "." not in own


def reachable() -> bool:
    """One try an address and process: the hub's own client tries for half a minute before it gives up."""
    from huggingface_hub import constants

    return not offline() and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception:  # of whichever HTTP library the hub's client is built on, or its offline mode
        return False
    return True
