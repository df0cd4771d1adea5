"""Copies trained networks of the lab into the package: fp16 safetensors, measurements, SHA-256 sums.

    python -m experiments.recipes.lab.ship descriptor_guide descriptor_judge scorer lab_sd lab_flow lab_ddpm

Latent networks take the tiny autoencoder along, as the folder `tiny`. Model cards are written by hand beside the
weights, from the measurements.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DiffusionPipeline

from amg.models.iddpm import SETTINGS
from amg.worlds.lab import FOLDER, write_sums
from experiments.recipes.lab.train_flow import WITHOUT_T5

LAB = Path(".lab")
RESULTS = ("descriptor.safetensors", "descriptor.torchscript.pt", "scorer.safetensors", "text.json", "measured.json")


def ship(source: Path, target: Path) -> None:
    """Copies the results of one training, and the networks of diffusers in fp16."""
    target.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        if (source / name).exists():
            shutil.copy(source / name, target)
    if (source / "tokenizer").is_dir():
        shutil.copytree(source / "tokenizer", target / "tokenizer", dirs_exist_ok=True)
    if (source / "pipeline").is_dir():
        kind = json.loads((source / "pipeline" / "model_index.json").read_text())["_class_name"]
        missing = WITHOUT_T5 if kind == "StableDiffusion3Pipeline" else {}
        pipe = DiffusionPipeline.from_pretrained(source / "pipeline", **missing).to(torch.float16)
        pipe.save_pretrained(target)
        if hasattr(pipe, "vae"):
            AutoencoderTiny.from_pretrained(LAB / "tiny" / "tiny").half().save_pretrained(target / "tiny")
        if isinstance(pipe, DDPMPipeline):
            null_label = pipe.unet.config.num_class_embeds - 1
            (target / SETTINGS).write_text(json.dumps({"null_label": null_label}) + "\n")
    for path in (*target.glob("model_index.json"), *target.glob("config.json"), *target.glob("*/config.json")):
        tidy(path)
    write_sums(target)


def tidy(path: Path) -> None:
    """Drops the training machine's path from a config; transformers opens text encoders in the dtype named there."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if path.parent.name.startswith("text_encoder"):
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="folders of .lab, with or without `lab_` in front")
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        source, target = LAB / name.removeprefix("lab_"), FOLDER / name
        if not source.is_dir():
            parser.error(f"{source} is missing: train it by experiments.recipes.lab.train_… first")
        ship(source, target)
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        measured = target / "measured.json"
        print(f"{target}: {size / 2**20:.2f} MiB", measured.read_text() if measured.exists() else "")


if __name__ == "__main__":
    main()
