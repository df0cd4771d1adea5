"""Turns what the lab recipes trained into what is committed: fp16 safetensors, measured again, with SHA-256 sums.

    python -m experiments.recipes.ship_lab descriptor_guide descriptor_judge scorer tiny lab_sd lab_flow lab_ddpm

Model cards are written by hand beside the weights, from the numbers that this prints and saves.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DiffusionPipeline
from safetensors.torch import load_file, save_file

from amg.models.iddpm import SETTINGS
from amg.worlds import networks as scorers
from amg.worlds.lab import FOLDER, write_sums
from amg.worlds.networks import DESCRIPTORS
from experiments.recipes import lab_data, train_lab_descriptor, train_lab_scorer

LAB = Path(".lab")


def halve(source: Path, target: Path) -> None:
    """Writes the floating-point tensors of a safetensors file in fp16; counters stay integers."""
    tensors = load_file(source)
    save_file({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, target)


def run_of(folder: Path, keys: tuple[str, ...] = ("steps", "minutes", "loss")) -> dict:
    measured = json.loads((folder / "measured.json").read_text())
    return {key: measured[key] for key in keys}


def ship_descriptor(source: Path, target: Path) -> None:
    name = target.name.removeprefix("descriptor_")
    halve(source / "descriptor.safetensors", target / "descriptor.safetensors")
    net = DESCRIPTORS[name]()
    net.load_state_dict(load_file(target / "descriptor.safetensors"))
    train_lab_descriptor.finish(net.float(), lab_data.load(), target, run_of(source))
    halve(target / "descriptor.safetensors", target / "descriptor.safetensors")  # finish saves float32


def ship_scorer(source: Path, target: Path) -> None:
    net = scorer_of(source)
    train_lab_scorer.finish(net, lab_data.load(), target, run_of(source))
    halve(target / "scorer.safetensors", target / "scorer.safetensors")


def scorer_of(source: Path) -> torch.nn.Module:
    net = scorers.load(source)
    for tensor in net.state_dict().values():
        tensor.copy_(tensor.half())  # measured as it will be shipped
    return net


def ship_pipeline(source: Path, target: Path) -> None:
    """The whole pipeline; the text encoders are opened in the precision that their config names."""
    kind = json.loads((source / "pipeline" / "model_index.json").read_text())["_class_name"]
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None} if kind == "StableDiffusion3Pipeline" else {}
    pipe = DiffusionPipeline.from_pretrained(source / "pipeline", **without_t5)
    pipe.to(torch.float16).save_pretrained(target)
    for path in (target / "model_index.json", *target.glob("*/config.json")):
        tidy(path, **({"dtype": "float32"} if path.parent.name.startswith("text_encoder") else {}))


def ship_tiny(source: Path, target: Path) -> None:
    AutoencoderTiny.from_pretrained(source / "tiny").to(torch.float16).save_pretrained(target)
    tidy(target / "config.json")
    (target / "measured.json").write_text((source / "measured.json").read_text())


def ship_ddpm(source: Path, target: Path) -> None:
    """Network and scheduler, and which label means none."""
    pipe = DDPMPipeline.from_pretrained(source / "pipeline").to(torch.float16)
    pipe.save_pretrained(target)
    for path in (target / "model_index.json", target / "unet" / "config.json"):
        tidy(path)
    (target / SETTINGS).write_text(json.dumps({"null_label": pipe.unet.config.num_class_embeds - 1}) + "\n")


def tidy(path: Path, **changes: str) -> None:
    """Drops from a config where it was trained, which is nobody's business."""
    config = json.loads(path.read_text()) | changes
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


SHIP = {
    "descriptor_guide": ship_descriptor,
    "descriptor_judge": ship_descriptor,
    "scorer": ship_scorer,
    "lab_ddpm": ship_ddpm,
    "lab_flow": ship_pipeline,
    "lab_sd": ship_pipeline,
    "tiny": ship_tiny,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(SHIP))
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        source, target = LAB / name.removeprefix("lab_"), FOLDER / name
        if not source.is_dir():
            parser.error(f"{source} is missing: run experiments.recipes.train_lab_{name.removeprefix('lab_')} first")
        target.mkdir(parents=True, exist_ok=True)
        SHIP[name](source, target)
        write_sums(target)
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        measured = target / "measured.json"
        print(f"{target}: {size / 2**20:.2f} MiB", measured.read_text() if measured.exists() else "")


if __name__ == "__main__":
    main()
