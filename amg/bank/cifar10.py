"""CIFAR-10: a preset of the Parquet source, or read through torchvision, which can download it."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amg.bank.bank import TrainingBank
from amg.bank.dedupe import dedupe
from amg.bank.images import UnreadableImage, decode_pixels
from amg.bank.sources import Row
from amg.bank.sources.parquet import Parquet
from amg.fetch import fetch_file
from amg.tensors import floats

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SIZE, SHA256 = 170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32


def cifar10_bank(
    path: str | Path = "data/cifar10",
    split: str = "train",
    download: bool = False,
    deduplicate: float | None = 1.0,
    cache: str | Path | None = "auto",
) -> TrainingBank:
    """The training images, captioned by their class, less the near-copies that would distort nL2's mean.

    Args:
        path, split, download: see `read_cifar10`.
        deduplicate: the paper's 1.0, see `amg.bank.dedupe`; None keeps all.
        cache: where descriptors are kept on disk, see `TrainingBank.from_folder`.
    """
    images, labels = _read(path, split, download)
    bank = TrainingBank.from_tensors(images, [CLASSES[label] for label in labels.tolist()], str(path), cache)
    del images  # the bank has its own
    if deduplicate is None:
        return bank
    reference = dedupe(bank, deduplicate)
    print(
        f"CIFAR-10: {len(bank):,} distinct images, {len(bank) - len(reference):,} near-copies left out, "
        f"{len(reference):,} to refer to",
        file=sys.stderr,
    )
    return reference


def find(path: str | Path = "data/cifar10", split: str = "train", download: bool = False) -> None:
    """Looks for the images without reading them.

    Raises:
        FileNotFoundError: where there are none and none are to be downloaded.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix == ".parquet" and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"data.path: there is no {path}")
    elif not (download or (path / "cifar-10-batches-py").is_dir() or any(path.glob(f"{split}*.parquet"))):
        raise _missing(path, split)


def fetch(path: str | Path = "data/cifar10", split: str = "train") -> None:
    """Fetches CIFAR-10 from its authors where there is nothing of it, 170 MB.

    Raises:
        NotFetched, OSError, ValueError: as `amg.fetch.fetch_file`.
    """
    path = Path(os.path.expanduser(path))
    try:
        find(path, split)
    except FileNotFoundError:
        if path.suffix == ".parquet":
            return
        archive = fetch_file(URL, path / "cifar-10-python.tar.gz", SHA256, SIZE)
        part = path / ".part"
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        os.replace(part / "cifar-10-batches-py", path / "cifar-10-batches-py")


def read_cifar10(
    path: str | Path = "data/cifar10", split: str = "train", download: bool = False
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) in [−1, 1] and labels (N,) in 0 … 9.

    Args:
        path: a Parquet file, a folder of them (those whose name begins with the split), or torchvision's root, which
            holds `cifar-10-batches-py`.
        split: `train` or `test`.
        download: lets torchvision download the 170 MB to `path` if there is nothing.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the fix.
    """
    images, labels = _read(path, split, download)
    return floats(images), labels


def _read(path: str | Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    """As `read_cifar10`, in 8 bits."""
    path = Path(os.path.expanduser(path))
    if split not in ("train", "test"):
        raise ValueError(f"data.split: CIFAR-10 has train and test, got {split!r}")
    if path.suffix == ".parquet" or any(path.glob(f"{split}*.parquet")):
        images, labels = _read_parquet(path, split)
    else:
        images, labels = _read_torchvision(path, split, download)
    return images.contiguous(), labels


def _read_parquet(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """8-bit images (N, 3, 32, 32) and labels (N,)."""
    found = Parquet(path, caption="label", names=CLASSES, split=split if path.is_dir() else None)
    rows = list(found.rows())
    labels = torch.tensor([_label(row.captions[0], row.key) for row in rows])
    return torch.from_numpy(np.stack([_pixels(row) for row in rows])).permute(0, 3, 1, 2), labels


def _label(name: str, place: str) -> int:
    if name not in CLASSES:
        raise ValueError(f"{place}: label {name!r} is not one of CIFAR-10's: 0 … {len(CLASSES) - 1}, or their names")
    return CLASSES.index(name)


def _pixels(row: Row) -> np.ndarray:
    try:
        pixels = decode_pixels(row.data)
    except UnreadableImage as error:
        raise ValueError(f"{row.key}: no readable image ({error})") from None
    if pixels.shape[:2] != (SIDE, SIDE):
        raise ValueError(f"{row.key}: an image of {pixels.shape[1::-1]}, CIFAR-10's are {SIDE} × {SIDE}")
    return pixels


def _read_torchvision(path: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(path, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise ValueError(f"data.path: CIFAR-10 cannot be downloaded to {path}: {error}") from None
        raise _missing(path, split) from None
    return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


def _missing(path: Path, split: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"data.path: {path} holds neither {split}*.parquet nor an intact cifar-10-batches-py: set "
        "data.download=true (170 MB), or data.path to the hub's Parquet files; ClosedForm() needs no files"
    )
