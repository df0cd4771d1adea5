"""The lab: shipped networks as models, descriptors and similarities.

They are trained on the drawn world and memorized what was planted. Weights are loaded at first use and
checked against their SHA-256.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from amg.bank import TrainingBank
from amg.bank.vectors import Identity
from amg.models.base import Model
from amg.models.ddpm import DDPM
from amg.models.pipeline import Pipeline
from amg.models.stable_diffusion import StableDiffusion
from amg.similarity.descriptor import DescriptorSimilarity
from amg.tensors import sha256_of
from amg.worlds.drawings import PLACEMENTS, training_images
from amg.worlds.networks import DESCRIPTORS, Scorer, load
from amg.worlds.world import World

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


FOLDER = Path(__file__).with_name("weights")
SUMS = "SHA256SUMS"


@cache
def weights(name: str, folder: Path = FOLDER) -> Path:
    """Returns the folder of one shipped network, every file of it checked against its SHA-256.

    Args:
        name: a folder under `amg/worlds/weights`, such as `lab_sd` or `descriptor_guide`.
    Raises:
        FileNotFoundError: if there is no such network or a file of it is missing.
        ValueError: if a file's content changed.
    """
    path = folder / name
    if not (path / SUMS).is_file():
        shipped = ", ".join(sorted(sums.parent.name for sums in folder.glob(f"*/{SUMS}"))) or "none"
        raise FileNotFoundError(
            f"no lab weights {name!r} in {folder} (shipped: {shipped}): train them by experiments/recipes"
        )
    for line in (path / SUMS).read_text(encoding="utf8").splitlines():
        expected, file = line.split("  ", 1)
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / file} is missing: restore it by `git checkout -- {path}`")
        if sha256_of(path / file) != expected:
            raise ValueError(
                f"{path / file} is not the file that was shipped (SHA-256 differs): restore it by `git checkout`, "
                f"or write new sums by experiments.recipes.lab.ship after training"
            )
    return path


def write_sums(path: Path) -> None:
    """Writes the sums of a network's files as `sha256sum` would; its model card may still be edited."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in (SUMS, "MODEL_CARD.md"))
    lines = [f"{sha256_of(f)}  {f.relative_to(path).as_posix()}\n" for f in files]
    (path / SUMS).write_text("".join(lines), encoding="utf8")


def descriptor(name: str) -> nn.Module:
    """Loads the shipped descriptor `guide` or `judge`, frozen, in float32; its attribute `copy` is its copy threshold.

    The same network is shipped as TorchScript beside it, called like the published SSCD.

    Raises:
        ValueError: for another name, or a weight file that is not the one that was shipped.
    """
    from safetensors.torch import load_file

    if name not in DESCRIPTORS:
        raise ValueError(f"no lab descriptor {name!r}: choose among {', '.join(DESCRIPTORS)}")
    folder = weights(f"descriptor_{name}")
    net = DESCRIPTORS[name]()
    net.load_state_dict(load_file(folder / "descriptor.safetensors"))
    net.copy = json.loads((folder / "measured.json").read_text())["threshold"]
    return net.float().eval().requires_grad_(False)


def scorer() -> Scorer:
    """Loads the shipped scorer, frozen, in float32."""
    return load(weights("scorer"))


def lab_sd() -> StableDiffusionPipeline:
    """Loads the shipped text-conditional latent diffusion network, of 32×32 images, in float32.

    The folder itself is `weights("lab_sd")`, for whatever takes a path.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(weights("lab_sd"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class LabDescriptor(DescriptorSimilarity):
    """Cosine of a shipped descriptor; its copy threshold is its own (1 % of novel images lie beyond it).

    Args:
        bank: training images, 32×32.
        which: `guide` or `judge`; of different build and seed.
        strict: the stricter threshold.
        norm_gradient: as `DescriptorSimilarity`'s.
        device: where the descriptor runs, and the images are.
        index: how the nearest is found, "auto", "exact" or "faiss"; see `DescriptorSimilarity`.
    """

    def __init__(
        self,
        bank: TrainingBank,
        which: str = "guide",
        strict: float = 0.9,
        norm_gradient: bool = False,
        device: str | torch.device = "cpu",
        index: str = "auto",
    ):
        net = descriptor(which).to(device)
        identity = Identity.of(net, f"lab_{which}")
        super().__init__(bank, net.embed, None, net.copy, strict, norm_gradient, identity, index)


class LabScorer(DescriptorSimilarity):
    """Cosine of the shipped scorer's image embeddings: CLIP's part in the lab. It has no copy threshold of its own.

    Args:
        bank: training images, 32×32.
        device, index: as `LabDescriptor`'s.
    """

    def __init__(self, bank: TrainingBank, device: str | torch.device = "cpu", index: str = "auto"):
        tower = scorer().image_tower.to(device)
        super().__init__(bank, tower.embed, identity=Identity.of(tower, "lab_scorer"), index=index)


class LabStableDiffusion(StableDiffusion):
    """`StableDiffusion` of the shipped weights, with its world.

    Args:
        device, dtype: as `StableDiffusion`'s.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: str | torch.dtype = torch.float32):
        super().__init__(weights("lab_sd"), device=device, dtype=dtype)

    def world(self) -> World:
        """Returns the network with its training set and prompts."""
        return _drawn(self)


class LabFlow(Pipeline):
    """`StableDiffusion3Pipeline` of the shipped weights, with its world: rectified flow, sampled under `guard`.

    Args:
        device, dtype: as `Pipeline`'s.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: str | torch.dtype = torch.float32):
        super().__init__(weights("lab_flow"), max_sequence_length=1, device=device, dtype=dtype)

    def world(self) -> World:
        """Returns the network with its training set and prompts."""
        return _drawn(self)


class LabDDPM(DDPM):
    """`DDPM` of the shipped weights, with its world: images alone; its classes are the groups of things, sorted.

    Args:
        device, dtype: as `DDPM`'s.
    """

    law = {"causes": ("duplicated image",), "placements": PLACEMENTS[:1]}
    """Its training images: without captions no other cause plants a drawing; every drawing is large."""

    def __init__(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        super().__init__(weights("lab_ddpm"), device=device, dtype=dtype)

    def world(self) -> World:
        """Returns the network with its training set."""
        training = training_images(self.side, **self.law)
        return World(self, training.bank(), classes=tuple(sorted(set(training.groups))), planted=training.planted)


def _drawn(model: Model) -> World:
    training = training_images(model.side)
    return World(model, training.bank(), training.prompts(), cause=training.cause, planted=training.planted)
