"""The numbers of a lab network's model card, from an unguided run and one of the same seeds under AMG.

    python run.py -m model=lab_sd row=none,full n_samples=1020 name=lab
    python -m experiments.recipes.measure_lab lab_sd runs/lab/lab_sd-none-* runs/lab/lab_sd-full-*
    python run.py -m model=lab_ddpm row=none,full n_samples=1000 name=lab
    python -m experiments.recipes.measure_lab lab_ddpm runs/lab/lab_ddpm-none-* runs/lab/lab_ddpm-full-*

Copies are counted by nL2, by PCA's cosine (as guides lab_sd, and of 128 directions), and at 32×32 by the descriptor
that only judges; all pictures and those next to a planted one alone; apart for planted and ordinary captions where
there are captions. Writes `measured.json` beside the weights, and a sheet of the 50 guided pictures (of planted
captions) most alike to a training picture, each over its nearest, into the guided run's folder.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from amg import records
from amg.bank import TrainingBank
from amg.metrics import features_of, frechet_between, moments
from amg.metrics.extractors import efficientnet_lite0, read_picture
from amg.similarity import NormalizedL2, PCASimilarity
from amg.worlds.emoji import lab_pictures
from amg.worlds.lab import FOLDER, LabDescriptor, write_sums
from experiments.build import component
from experiments.cli import compose_config
from experiments.config import check
from experiments.recipes import lab_data


def pictures(run: Path, rows: pd.DataFrame) -> Tensor:
    """Those of some records, (N, 3, H, W) in [−1, 1]."""
    return torch.stack([read_picture(records.picture_path(run, seed)) for seed in rows["seed"]])


def counts(images: Tensor, judges: dict, planted: Tensor) -> dict[str, int]:
    """Copies by each judge, and by each of a planted picture."""
    numbers = {"n": len(images)}
    for name, judge in judges.items():
        value, index = judge(images)
        copies = value > judge.copy
        numbers[name] = int(copies.sum())
        numbers[f"{name}_of_planted"] = int((copies & torch.isin(index, planted)).sum())
    return numbers


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the network, e.g. lab_sd")
    parser.add_argument("unguided", type=Path)
    parser.add_argument("guided", type=Path)
    args = parser.parse_args()
    rows = records.read(args.guided)
    size = pictures(args.guided, rows[:1]).shape[-1]
    known = lab_pictures(size)
    planted = torch.tensor([cause != "" for cause in known.causes]).nonzero().flatten()
    bank = TrainingBank.from_tensors(known.images, list(known.names))
    guide = check(compose_config(["model=lab_sd", "similarity=lab_pca"])).similarity
    pca = {"pca48": component(guide, bank=bank), "pca": PCASimilarity(bank)}
    judges = pca | {"nl2": NormalizedL2(bank)} | ({"judge": LabDescriptor(bank, "judge")} if size == 32 else {})
    extractor = efficientnet_lite0(96)
    results: dict[str, dict] = {}
    features: dict[str, Tensor] = {}
    for kind, run in (("unguided", args.unguided), ("guided", args.guided)):
        rows = records.read(run)
        groups = {"": rows}
        if (rows["cause"] != "").any():
            ordinary = rows["cause"] == "ordinary"
            groups = {"_planted": rows[~ordinary], "_ordinary": rows[ordinary]}
        for group, some in groups.items():
            images = pictures(run, some)
            found = counts(images, judges, planted)
            found["never_guided"] = int((some["steps_guided"] == 0).sum())
            found["steps_guided"] = round(some["steps_guided"].sum() / some["steps"].sum(), 4)
            results[kind + group] = found
            features[kind + group] = features_of(images, extractor, None)
    if "guided_planted" in features:  # do the pictures that AMG saves still look like pictures of this network?
        ordinary = moments(features["unguided_ordinary"])
        for name in ("unguided_planted", "guided_planted", "guided_ordinary"):
            results[name]["frechet_to_unguided_ordinary"] = round(frechet_between(features[name], *ordinary), 1)
    rows = rows[rows["cause"] != "ordinary"]
    images = pictures(args.guided, rows)
    value, index = judges["judge" if size == 32 else "nl2"](images)
    most = value.argsort(descending=True)[:50]
    pairs = torch.stack([images[most], known.images[index[most]]]).view(2, -1, 10, 3, size, size).transpose(0, 1)
    lab_data.sheet([pairs.flatten(0, 2)], args.guided / "most_alike.png", columns=10, zoom=96 // size)
    target = FOLDER / args.name
    (target / "measured.json").write_text(json.dumps(results, indent=2) + "\n")
    write_sums(target)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
