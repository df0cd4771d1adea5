"""Measures a lab network for its model card, from an unguided run and a run of the same seeds under AMG.

    python run.py -m model=lab_sd guidance=none,full n_samples=1008 name=lab
    python -m experiments.recipes.lab.measure lab_sd runs/lab/lab_sd-none-* runs/lab/lab_sd-full-*
    python run.py -m model=lab_ddpm guidance=none,full n_samples=1000 name=lab
    python -m experiments.recipes.lab.measure lab_ddpm runs/lab/lab_ddpm-none-* runs/lab/lab_ddpm-full-*

Judges of copies are nL2, correlation (the guide), PCA's cosine and the descriptor that only judges. Each counts all
copies and copies of planted images, for planted and ordinary captions separately; the scorer counts the images whose
thing it names first among all. The command writes `measured.json` beside the weights. It also writes a sheet into the
guided run's folder: the 50 guided images of planted captions most similar to a training image, each over its nearest.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from amg.guidance.presets import COPY_THRESHOLDS
from amg.metrics import features_of, frechet_between, moments
from amg.metrics.extractors import efficientnet_lite0, read_picture
from amg.similarity import NormalizedL2, PCASimilarity, PixelCorrelation
from amg.worlds.drawings import training_images
from amg.worlds.lab import FOLDER, LabDDPM, LabDescriptor, scorer, write_sums
from experiments.recipes.lab import data as lab_data
from experiments.run import records


def read_images(run: Path, rows: pd.DataFrame) -> Tensor:
    """Reads the images of records, (N, 3, H, W) in [−1, 1]."""
    return torch.stack([read_picture(records.picture_path(run, seed)) for seed in rows["seed"]])


def counts(images: Tensor, judges: dict, planted: Tensor) -> dict[str, int]:
    """Counts copies by each judge, of all images and of planted images."""
    numbers = {"n": len(images)}
    for name, judge in judges.items():
        value, index = judge(images)
        copies = value > judge.copy
        numbers[name] = int(copies.sum())
        numbers[f"{name}_of_planted"] = int((copies & torch.isin(index, planted)).sum())
    return numbers


def named(images: Tensor, things: list[str]) -> int:
    """Counts the images whose own thing is the scorer's first among all things."""
    names, net = sorted(set(training_images(32).things)), scorer()
    first = (net.image(images) @ net.text(names).T).argmax(1)
    return sum(names[i] == thing for i, thing in zip(first.tolist(), things, strict=True))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="network, e.g. lab_sd")
    parser.add_argument("unguided", type=Path)
    parser.add_argument("guided", type=Path)
    args = parser.parse_args()
    training = training_images(32, **(LabDDPM.law if args.name == "lab_ddpm" else {}))
    planted = torch.tensor([cause != "" for cause in training.causes]).nonzero().flatten()
    bank = training.bank()
    judges = {
        "correlation": PixelCorrelation(bank),
        "pca": PCASimilarity(bank, copy=COPY_THRESHOLDS[args.name, "pca"][0]),
        "nl2": NormalizedL2(bank, copy=COPY_THRESHOLDS[args.name, "nl2"][0]),
        "judge": LabDescriptor(bank, "judge"),
    }
    things = {caption: thing for captions, thing in zip(training.captions, training.things, strict=True)
              for caption in captions}  # fmt: skip
    extractor = efficientnet_lite0(96)
    results: dict[str, dict] = {}
    features: dict[str, Tensor] = {}
    for kind, run in (("unguided", args.unguided), ("guided", args.guided)):
        table = records.read(run)
        groups = {"": table}
        if (table["cause"] != "").any():
            ordinary = table["cause"] == "ordinary"
            groups = {"_planted": table[~ordinary], "_ordinary": table[ordinary]}
        for group, subset in groups.items():
            images = read_images(run, subset)
            numbers = counts(images, judges, planted)
            if subset["prompt"].notna().all():
                numbers["named"] = named(images, [things[prompt] for prompt in subset["prompt"]])
            numbers["never_guided"] = int((subset["steps_guided"] == 0).sum())
            numbers["steps_guided"] = round(subset["steps_guided"].sum() / subset["steps"].sum(), 4)
            results[kind + group] = numbers
            features[kind + group] = features_of(images, extractor, None)
    if "guided_planted" in features:  # do images that AMG saves still look like images of this network?
        ordinary = moments(features["unguided_ordinary"])
        for name in ("unguided_planted", "guided_planted", "guided_ordinary"):
            results[name]["frechet_to_unguided_ordinary"] = round(frechet_between(features[name], *ordinary), 1)
    images = read_images(args.guided, table[table["cause"] != "ordinary"])  # of the guided run, the last above
    value, index = judges["judge"](images)
    rows = []
    for ten in value.argsort(descending=True)[:50].split(10):
        rows += [images[ten], training.images[index[ten]]]
    lab_data.sheet(rows, args.guided / "most_alike.png", columns=10)
    target = FOLDER / args.name
    (target / "measured.json").write_text(json.dumps(results, indent=2) + "\n")
    write_sums(target)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
