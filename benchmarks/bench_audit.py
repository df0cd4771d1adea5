"""Copies that an audit finds: 30 planted images of the drawn world among 850 novel ones, in five versions.

    python -m benchmarks.bench_audit [guide judge …]

Prints the share that guide and judge find of each version, and the seconds of the audit of 1,000 images.
"""

import csv
import io
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.functional import to_pil_image

from amg.worlds.drawings import ordinary, sample, training_images
from experiments.cli.main import main

SIDE, PLANTED, NOVEL = 64, 30, 850


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def cropped(image: Image.Image) -> Image.Image:
    margin = round(0.08 * image.width)
    return image.crop((margin, margin, image.width - margin, image.height - margin)).resize(image.size)


def recoloured(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(0.6)).enhance(0.85)


VERSIONS = {
    "verbatim": lambda image: image,
    "recompressed (JPEG 75)": recompressed,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped by 8 % a side": cropped,
    "recoloured (saturation 0.6, brightness 0.85)": recoloured,
}


def pil(image: torch.Tensor) -> Image.Image:
    return to_pil_image(image.add(1).mul(127.5).round().to(torch.uint8))


def write(root: Path) -> None:
    """The training set as a folder, and the images to audit."""
    training = training_images(SIDE)
    (root / "train").mkdir()
    (root / "made").mkdir()
    for i, (image, captions) in enumerate(zip(training.images, training.captions, strict=True)):
        pil(image).save(root / "train" / f"{i:04d}.png")
        (root / "train" / f"{i:04d}.txt").write_text(captions[0])
    for name, version in VERSIONS.items():
        for i in range(PLANTED):
            version(pil(training.images[i])).save(root / "made" / f"{name.split()[0]}-{i:02d}.png")
    components, generator = ordinary(SIDE), torch.Generator().manual_seed(7)
    index = torch.randint(len(components.drawing), (NOVEL,), generator=generator)
    for i, image in enumerate(sample(components, index, generator)):
        pil(image).save(root / "made" / f"novel-{i:03d}.png")


def found(file: Path) -> dict[str, tuple[int, int, int]]:
    """By version: images, and how many of them guide and judge call copies."""
    counts: dict[str, list[int]] = {}
    with file.open() as opened:
        for row in csv.DictReader(opened):
            count = counts.setdefault(Path(row["file"]).name.split("-")[0], [0, 0, 0])
            count[0] += 1
            count[1] += row["copy_guide"] == "True"
            count[2] += row["copy_judge"] == "True"
    return {name: tuple(count) for name, count in counts.items()}


if __name__ == "__main__":
    choices = sys.argv[1:] or ["pca", "nl2"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root)
        for guide, judge in zip(choices[::2], choices[1::2], strict=True):
            start = time.perf_counter()
            data = ["data=folder", f"data.path={root / 'train'}", "data.cache=null", f"task.images={root / 'made'}"]
            size = 32 if {"lab_guide", "lab_judge"} & {guide, judge} else SIDE
            sides = [f"similarity={guide}", f"similarity@judge={judge}", f"data.size={size}"]
            code = main(["task=audit", *data, *sides, "trainer=cpu", f"output_dir={root / guide}"])
            assert code == 0
            print(f"\n{guide} and {judge}: {time.perf_counter() - start:.0f} s, of them the start of the program")
            counts = found(root / guide / "images.csv")
            for name in [*(version.split()[0] for version in VERSIONS), "novel"]:
                n, by_guide, by_judge = counts[name]
                label = next((version for version in VERSIONS if version.split()[0] == name), name)
                print(f"{label:45s} {guide} {by_guide}/{n}   {judge} {by_judge}/{n}")
