"""Turns a checkpoint of openai/improved-diffusion into a diffusers model folder.

    python -m amg.models.iddpm weights/cifar10_uncond_50M_500K.pt weights/iddpm_cifar10

diffusers' `UNet2DModel` expresses that network exactly: scale-shift normalisation, four attention heads at 16 and 8
pixels and in the middle, time embedding with the cosine first.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

URL = "https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_50M_500K.pt"
SETTINGS = "amg.json"
"""Beside the diffusers files: what their configs cannot say (`timestep_scale`, `null_label`)."""
SIDE, LEVELS, RES_BLOCKS, HEADS, NORM_GROUPS, STEPS = 32, (1, 2, 2, 2), 3, 4, 32, 4000
ATTENTION = (16, 8)
"""Sides of the feature maps that have attention."""

ZIP, LEGACY = b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of files of `torch.save`, of today and of before 1.6."""


def convert(checkpoint: str | Path, folder: str | Path) -> Path:
    """Writes the folder that `iddpm_cifar10` and `iddpm_cifar10_cond` read; replaces what it held.

    Args:
        checkpoint: an improved-diffusion state dict of the CIFAR-10 architecture, any width, with or without labels.
        folder: where the diffusers model goes.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the mend.
    """
    state = read_checkpoint(checkpoint)
    network = unet_for(state, checkpoint)
    network.load_state_dict(rename(state, network, checkpoint))
    return save(network, folder)


def save(network: UNet2DModel, folder: str | Path) -> Path:
    """Writes a CIFAR-10 iDDPM network with its scheduler and settings."""
    folder = Path(folder)
    DDPMPipeline(network, scheduler()).save_pretrained(folder)
    # rescale_timesteps: the network is fed t · 1000 / 4000
    (folder / SETTINGS).write_text(json.dumps({"timestep_scale": 1000 / STEPS}) + "\n")
    return folder


def scheduler(steps: int = STEPS) -> DDPMScheduler:
    """The cosine schedule of 4000 steps with a learned variance, log Σ between log β̃_t and log β_t.

    `set_timesteps(250)` respaces it as improved-diffusion does: the timesteps are round(i · 3999 / 249), and β_t and
    β̃_t are those of the shorter trajectory.
    """
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=True,
    )


def unet(width: int = 128, labels: int | None = None, learned_variance: bool = True, dropout: float = 0.3):
    """The CIFAR-10 network of improved-diffusion, freshly initialised.

    Args:
        width: channels at full resolution, a multiple of 32.
        labels: how many classes it knows; None is unconditional.
    """
    sides = [SIDE >> level for level in range(len(LEVELS))]
    down = tuple("AttnDownBlock2D" if side in ATTENTION else "DownBlock2D" for side in sides)
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=6 if learned_variance else 3,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        block_out_channels=tuple(width * level for level in LEVELS),
        layers_per_block=RES_BLOCKS,
        attention_head_dim=width * LEVELS[-1] // HEADS,
        attn_norm_num_groups=NORM_GROUPS,  # without it the middle attention would lose its norm under scale_shift
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,
        freq_shift=0,
        dropout=dropout,
        num_class_embeds=labels,
    )


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """A state dict, loaded without running any code that the file may hold."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: download {URL} (about 210 MB) to that path and convert it; ClosedForm() needs no files"
        )
    with path.open("rb") as file:
        ours = file.read(len(LEGACY)).startswith((ZIP, LEGACY))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a pickle that it did not write
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything for a file that it did not write, or not whole
        cut = ours and not isinstance(error, pickle.UnpicklingError)
        reason = "truncated?" if cut else "not a file of tensors"
        raise ValueError(f"{path} is no PyTorch state dict ({reason}): download {URL} again") from None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} is no state dict: expected names with tensors, got {type(state).__name__}")
    if {"state", "param_groups"} <= state.keys():
        raise ValueError(f"{path} is an optimizer's state: take ema_*.pt or model*.pt of the same step")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ValueError(f"{path} is no state dict: expected names with tensors, not all of it is")
    return state


def unet_for(state: dict[str, Tensor], path: str | Path = "the checkpoint") -> UNet2DModel:
    """The network whose weights a state dict holds; width, labels and learned variance are read off its shapes."""
    for name in ("input_blocks.0.0.weight", "out.2.weight"):
        if name not in state:
            raise ValueError(f"{path} is no improved-diffusion network: it has no {name}; its first is {min(state)}")
    axes = {"input_blocks.0.0.weight": 4, "out.2.weight": 4, "label_emb.weight": 2}
    for name in set(axes) & set(state):
        if state[name].ndim != axes[name]:
            raise ValueError(f"{path}: {name} has {state[name].ndim} axes, expected {axes[name]}: see {URL}")
    if len(state["input_blocks.0.0.weight"]) % NORM_GROUPS:
        raise ValueError(f"{path} is a network of another width than a multiple of {NORM_GROUPS}: see {URL}")
    side = _side(state)
    if side != SIDE:
        raise ValueError(f"{path} is a network for {side}-pixel images; CIFAR-10's is for {SIDE}: see {URL}")
    return unet(
        width=len(state["input_blocks.0.0.weight"]),
        labels=len(state["label_emb.weight"]) if "label_emb.weight" in state else None,
        learned_variance=len(state["out.2.weight"]) == 6,
    )


def rename(state: dict[str, Tensor], network: UNet2DModel, path: str | Path = "the checkpoint") -> dict[str, Tensor]:
    """The same weights under diffusers' names; every name must be used and every shape must fit."""
    own = network.state_dict()
    names = {  # parameters, diffusers' name first
        f"{new}.{kind}": f"{old}.{kind}"
        for new, old in _names(network)
        for kind in ("weight", "bias")
        if f"{new}.{kind}" in own  # a residual block of one width has no shortcut, the class embedding no bias
    }
    wanted = restore(network)
    for what, some in (("misses", set(wanted) - set(state)), ("has the unexpected", set(state) - set(wanted))):
        if some:
            some = sorted(some)
            raise ValueError(
                f"{path} {what} {len(some)} key(s), e.g. {', '.join(some[:3])}: expected the CIFAR-10 network of {URL}"
            )
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}: "
                f"this is not the CIFAR-10 network of {URL}"
            )
    result = {new: state[old] for new, old in names.items()}
    for new, old in _attentions(network).items():
        for kind in ("weight", "bias"):
            # rows of qkv are ordered head by head: q, k and v of the first head, then those of the second …
            parts = state[f"{old}.qkv.{kind}"].squeeze(-1).unflatten(0, (HEADS, 3, -1)).unbind(1)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                result[f"{new}.{name}.{kind}"] = part.flatten(0, 1)
        weight = f"{new}.to_out.0.weight"
        result[weight] = result[weight].squeeze(-1)
    return result


def restore(network: UNet2DModel) -> dict[str, Tensor]:
    """The inverse of `rename`: a network's weights under improved-diffusion's names, as a checkpoint holds them."""
    own = network.state_dict()
    state = {
        f"{old}.{kind}": own[f"{new}.{kind}"]
        for new, old in _names(network)
        for kind in ("weight", "bias")
        if f"{new}.{kind}" in own
    }
    for new, old in _attentions(network).items():
        for kind in ("weight", "bias"):
            parts = [own[f"{new}.{name}.{kind}"].unflatten(0, (HEADS, -1)) for name in ("to_q", "to_k", "to_v")]
            state[f"{old}.qkv.{kind}"] = torch.stack(parts, 1).flatten(0, 2)
        for name in ("qkv.weight", "proj_out.weight"):  # convolutions over a sequence there
            state[f"{old}.{name}"] = state[f"{old}.{name}"][..., None]
    return state


def _names(network: UNet2DModel) -> Iterator[tuple[str, str]]:
    """Modules under diffusers' name and improved-diffusion's."""
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    if network.class_embedding is not None:
        yield "class_embedding", "label_emb"
    for new, old in _resnets(network).items():
        for one, other in (
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
            ("conv_shortcut", "skip_connection"),
        ):
            yield f"{new}.{one}", f"{old}.{other}"
    for new, old in _attentions(network).items():
        yield f"{new}.group_norm", f"{old}.norm"
        yield f"{new}.to_out.0", f"{old}.proj_out"
    for level in range(len(LEVELS) - 1):
        # a level has its residual blocks and then one block that halves (or, with one more residual block, doubles)
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{(level + 1) * (RES_BLOCKS + 1)}.0.op"
        last = (level + 1) * (RES_BLOCKS + 1) - 1
        place = 1 + hasattr(network.up_blocks[level], "attentions")
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{last}.{place}.conv"


def _resnets(network: UNet2DModel) -> dict[str, str]:
    names = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for level in range(len(LEVELS)):
        for i in range(RES_BLOCKS):
            names[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{1 + level * (RES_BLOCKS + 1) + i}.0"
        for i in range(RES_BLOCKS + 1):
            names[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{level * (RES_BLOCKS + 1) + i}.0"
    return names


def _attentions(network: UNet2DModel) -> dict[str, str]:
    names = {"mid_block.attentions.0": "middle_block.1"}
    for new, old in _resnets(network).items():
        block, level = new.split(".")[:2]
        if block != "mid_block" and hasattr(getattr(network, block)[int(level)], "attentions"):
            names[new.replace("resnets", "attentions")] = old[:-1] + "1"
    return names


def _side(state: dict[str, Tensor]) -> int:
    """The side of the images, read off where attention begins: a state dict does not say it."""
    blocks = [int(found[1]) for name in state if (found := re.match(r"input_blocks\.(\d+)\..*qkv\.weight", name))]
    level = (min(blocks) - 1) // (RES_BLOCKS + 1) if blocks else 0
    return max(ATTENTION) << level


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m amg.models.iddpm CHECKPOINT.pt FOLDER")
    try:
        print(f"wrote {convert(*sys.argv[1:])}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
