"""Pixel diffusion with diffusers' `UNet2DModel`: unconditional or by class, fixed or learned variance."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from torch import Tensor

from amg.bank.cifar10 import CLASSES
from amg.fetch import fetch_file
from amg.hub import reachable
from amg.models.base import Model
from amg.models.iddpm import SETTINGS, URL, convert
from amg.tensors import digest_of

CIFAR10 = "google/ddpm-cifar10-32"


class DDPM(Model):
    """A `UNet2DModel` and its scheduler, from a folder in diffusers' layout or by hub name.

    A class-conditional network takes labels 0 … n − 1. None is its null label where it has one; without one it draws
    at s0 = 1 only.

    Args:
        path: a folder that `DDPMPipeline.save_pretrained` wrote, a flat one (config.json, scheduler_config.json), or
            the name of either on the Hugging Face hub.
        timestep_scale: the network is fed timestep · timestep_scale; None reads the folder's `amg.json`, else 1.
        null_label: the row of the class embedding that means "no label"; None reads `amg.json`, else there is none.
        device, dtype: of the network and the samples.
    """

    def __init__(
        self,
        path: str | Path,
        timestep_scale: float | None = None,
        null_label: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        network, self.scheduler, settings = _load(path, dtype)
        self.network = network.eval().requires_grad_(False).to(device)
        self.device, self.dtype = torch.device(device), dtype
        config = self.network.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.side = config.sample_size
        self.timestep_scale = settings.get("timestep_scale", 1.0) if timestep_scale is None else timestep_scale
        self.null_label = settings.get("null_label") if null_label is None else null_label
        self.labels = config.num_class_embeds - (self.null_label is not None) if config.num_class_embeds else 0
        self.classes = [str(label) for label in range(self.labels)]

    @cached_property
    def digest(self) -> str:
        """A hash of the weights: it names the network in a run's record."""
        return digest_of(sorted(self.network.state_dict().items()))

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scheduler's prediction type, (B, 3, H, W), and the variance channels in about [−1, 1], or None."""
        if condition is None and self.labels:
            condition = self.encode([None] * len(x_t))
        if self.timestep_scale != 1:
            timestep = timestep * self.timestep_scale
        output = self.network(x_t, timestep, class_labels=condition).sample
        channels = x_t.shape[1]
        return output[:, :channels], output[:, channels:] if output.shape[1] == 2 * channels else None

    def encode(self, conditions: Sequence[str | int | None]) -> Tensor | None:
        """Labels to class indices, (B,); None where the network knows no classes."""
        if not self.labels:
            given = next((one for one in conditions if one is not None), None)
            if given is not None:
                raise ValueError(f"this network is unconditional: it takes no label, got {given!r}")
            return None
        return torch.tensor([self._label(one) for one in conditions], device=self.device)

    def decode(self, x0: Tensor) -> Tensor:
        """x_0 lies in pixel space."""
        return x0

    def _label(self, label: int | None) -> int:
        if label is None:
            if self.null_label is None:
                raise ValueError(f"this network has no null label: give labels 0 … {self.labels - 1} and set s0=1")
            return self.null_label
        if isinstance(label, bool) or not isinstance(label, int):
            raise ValueError(f"a label is a whole number 0 … {self.labels - 1}, got {label!r}")
        if not 0 <= label < self.labels:
            raise ValueError(f"labels of this network are 0 … {self.labels - 1}, got {label}")
        return label


def ddpm_cifar10(
    path: str | Path = CIFAR10,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DDPM:
    """Ho et al.'s CIFAR-10 network: by hub name (about 143 MB), or a local folder of it."""
    return DDPM(path, device=device, dtype=dtype)


def iddpm_cifar10(
    path: str | Path = "weights/iddpm_cifar10",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DDPM:
    """Nichol & Dhariwal's unconditional CIFAR-10 network, converted by `amg.models.iddpm`."""
    _find_iddpm(path)
    model = DDPM(path, device=device, dtype=dtype)
    if model.labels and model.null_label is None:
        raise ValueError(
            f"{path} holds a network of {model.labels} labels and none for no label: model=iddpm_cifar10_cond takes "
            "CIFAR-10's ten"
        )
    return model


def iddpm_cifar10_cond(
    path: str | Path = "weights/iddpm_cifar10_cond",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DDPM:
    """The same network with CIFAR-10's ten labels. No weights are public: a recipe trains them."""
    _find_iddpm_cond(path)
    model = DDPM(path, device=device, dtype=dtype)
    if model.labels != 10:
        raise ValueError(f"{path} holds a network of {model.labels} labels, CIFAR-10 has 10")
    model.classes = list(CLASSES)
    return model


def _find_ddpm(path: str | Path = CIFAR10) -> None:
    from huggingface_hub import snapshot_download

    if Path(path).is_dir():
        return
    try:
        snapshot_download(str(path), allow_patterns="*.json", local_files_only=True)
    except (OSError, ValueError) as error:
        if not reachable():
            raise _out_of_reach(path, error) from None


def _find_iddpm(path: str | Path = "weights/iddpm_cifar10") -> None:
    checkpoint = Path("weights") / Path(URL).name
    command = f"python -m amg.models.iddpm {checkpoint} {path}"
    _need(path, f"download {URL} (about 210 MB) to {checkpoint} and run `{command}`")


def _find_iddpm_cond(path: str | Path = "weights/iddpm_cifar10_cond") -> None:
    command = f"python -m experiments.recipes.train_iddpm_cifar10_cond --out {path}"
    _need(path, f"no weights are public, train some by `{command}`")


def _fetch_iddpm(path: str | Path = "weights/iddpm_cifar10") -> None:
    """Fetches the published checkpoint and converts it, where the folder is missing."""
    if not Path(path).exists():
        part = Path(f"{path}.part")
        checkpoint = fetch_file(URL, Path(path).parent / Path(URL).name)
        shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
        os.replace(convert(checkpoint, part), path)


# what experiments asks before a network is loaded
ddpm_cifar10.find, iddpm_cifar10.find, iddpm_cifar10_cond.find = _find_ddpm, _find_iddpm, _find_iddpm_cond
iddpm_cifar10.fetch = _fetch_iddpm
iddpm_cifar10.learns_variance = iddpm_cifar10_cond.learns_variance = True


def _need(path: str | Path, mend: str) -> None:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"model.path: there is no folder {path}: {mend}; ClosedForm() needs no files")


def _folder(path: str | Path) -> Path:
    """The local folder, downloaded where `path` is a hub name; safetensors where there are any."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(snapshot_download(str(path), allow_patterns=["*.json", weights]))
            if any(folder.rglob(weights)):
                break
        return folder
    except (OSError, ValueError) as error:
        raise _out_of_reach(path, error) from None


def _out_of_reach(path: str | Path, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"model.path: {path} is no folder and the hub cannot give it ({type(error).__name__}): download "
        f"https://huggingface.co/{path}{' (about 143 MB)' if path == CIFAR10 else ''} where there is a network, "
        "set model.path to that folder; ClosedForm() needs no files"
    )


def _load(path: str | Path, dtype: torch.dtype) -> tuple[UNet2DModel, Any, dict[str, Any]]:
    """Network, scheduler and settings of a folder with `unet/` and `scheduler/`, or of a flat one."""
    folder = _folder(path)
    own = folder / "unet" if (folder / "unet").is_dir() else folder
    plan = (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"
    for file in (own / "config.json", plan):
        if not file.is_file():
            raise FileNotFoundError(
                f"model.path: {folder} is no diffusers model: {file.relative_to(folder)} is missing"
            )
    try:
        network = UNet2DModel.from_pretrained(own, torch_dtype=dtype)
    except (OSError, RuntimeError, ValueError) as error:  # no weights, or weights of another shape
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"model.path: {own} holds no weights that fit its config.json: {reason}") from None
    config = json.loads(plan.read_text())
    settings = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).is_file() else {}
    return network, getattr(diffusers, config["_class_name"]).from_config(config), settings
