"""Trains one of the lab's two copy descriptors, after the idea of SSCD (Pizzi et al., 2022).

    python -m experiments.recipes.lab.train_descriptor --name guide --seed 10
    python -m experiments.recipes.lab.train_descriptor --name judge --seed 20

A descriptor learns to distinguish a distorted copy from an image of the same drawing in other colours: those are new
images, as the law samples them. Views are distorted, and half of the time also nudged adversarially: a gradient that
changes nothing visible shall gain nothing.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amg.worlds.drawings import training_images
from amg.worlds.networks import DESCRIPTORS
from experiments.recipes import loop
from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab.views import distort

PAIRS = 64  # images in a batch; each gives two views
TEMPERATURE = 0.07
NUDGE = 0.06  # largest adversarial change of a pixel, of a range of 2: about 8 of 255
NOVEL = 4000  # novel samples of the law, of which 1 % may pass the copy threshold


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE in both directions: row i of a matches row i of b, all other rows are distinct images."""
    logits = a @ b.T / TEMPERATURE
    target = torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def nudge(net: nn.Module, views: Tensor, anchors: Tensor) -> Tensor:
    """Takes one signed gradient step from a random start, away from the anchors' vectors, within ±NUDGE."""
    start = (views + torch.empty_like(views).uniform_(-NUDGE, NUDGE)).requires_grad_()
    (gradient,) = torch.autograd.grad((net(start) * anchors).sum(), start)
    moved = (start.detach() - NUDGE * gradient.sign()).clamp(views - NUDGE, views + NUDGE)
    return moved.clamp(-1, 1)


def batch(data: lab_data.LabData, pairs: int = PAIRS) -> Tensor:
    """Samples distinct images: a half at random, most of them again in other colours, and planted ones."""
    components = data.random(pairs // 2)
    planted = data.planted[torch.randperm(len(data.planted))[: pairs // 8]]
    twins = components[: pairs // 2 - len(planted)]
    return torch.cat([data.ordinary(components), data.ordinary(twins), planted])


@torch.no_grad()
def embed(net: nn.Module, images: Tensor) -> Tensor:
    """Embeds images (N, 3, 32, 32) in batches."""
    return torch.cat([net(batch) for batch in images.split(256)])


def measure(net: nn.Module, data: lab_data.LabData, seed: int = 0, views: int = 2) -> dict:
    """Measures the threshold that 1 % of novel samples pass, and the share of distorted training images beyond it.

    A query counts as a false positive if any of the N training images passes the threshold, as in use. A row of the
    ROC holds the share of novel samples and of distorted training images beyond a threshold, and the threshold.
    """
    training = training_images().images
    truth = torch.arange(len(training)).repeat(views)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        novel = data.ordinary(data.random(NOVEL))
        distorted = torch.cat([distort(training) for _ in range(views)])
    bank = embed(net, training)
    nearest = (embed(net, novel) @ bank.T).amax(1)
    cosine = embed(net, distorted) @ bank.T
    cosine_of_truth = cosine.gather(1, truth[:, None]).flatten()
    rates = torch.logspace(-3, 0, 25)
    limits = torch.quantile(nearest, 1 - rates)
    threshold = torch.quantile(nearest, 0.99).item()
    return {
        "threshold": threshold,
        "recall_at_threshold": (cosine_of_truth > threshold).float().mean().item(),
        "rank1": (cosine.argmax(1) == truth).float().mean().item(),
        "roc": [
            [rate, (cosine_of_truth > limit).float().mean().item(), limit]
            for rate, limit in zip(rates.tolist(), limits.tolist(), strict=True)
        ],
        "novel": NOVEL,
        "distorted": len(distorted),
    }


def finish(net: nn.Module, data: lab_data.LabData, out: Path, run: dict) -> dict:
    """Saves fp16 weights, a TorchScript module (called like the published SSCD) and measurements."""
    save_file(net.eval().half().state_dict(), out / "descriptor.safetensors")
    numbers = run | measure(net.float(), data)  # of the weights as rounded
    torch.jit.trace(net, data.planted[:4]).save(str(out / "descriptor.torchscript.pt"))
    (out / "measured.json").write_text(json.dumps(numbers, indent=2))
    return numbers


def main() -> None:
    args = loop.arguments(__doc__, "descriptor", minutes=20, name=sorted(DESCRIPTORS), start=True)
    data = lab_data.load()
    net = DESCRIPTORS[args.name]()
    if args.start:
        net.load_state_dict(load_file(args.start / "descriptor.safetensors"))

    def loss_of(step: int) -> Tensor:
        images = batch(data)
        with torch.no_grad():
            anchors = net(distort(images))
        views = nudge(net, distort(images), anchors) if step % 2 else distort(images)
        return contrast(net(distort(images)), net(views))

    run = loop.Training(loss_of, net, args.out, peak=2e-3, minutes=args.minutes, weight_decay=1e-2).run()
    print(finish(net, data, args.out, run))


if __name__ == "__main__":
    main()
