"""Trains the lab's image–text scorer, after CLIP (Radford et al., 2021).

    python -m experiments.recipes.lab.train_scorer --minutes 10

Captions name the thing that an image shows, its group, or a planted image. New samples of the law measure it.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from amg.worlds.networks import Scorer
from experiments.recipes import loop
from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab import text as lab_text
from experiments.recipes.lab.views import distort

BATCH = 96


def network(captions: list[str], width: int = 96) -> Scorer:
    tokenizer = lab_text.tokenizer(captions)
    return Scorer(lab_text.config(tokenizer, width), tokenizer)


def loss(net: Scorer, images: Tensor, captions: list[str]) -> Tensor:
    """CLIP's cross entropy in both directions; images that share a caption share the target."""
    logits = net.log_scale.exp().clamp(max=100) * net.image(images) @ net.text(captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def captions_by_thing(data: lab_data.LabData) -> dict[str, list[str]]:
    """Lists the captions that name each thing: its own name first, then those of its planted images."""
    captions = {thing: [thing] for thing in sorted(set(data.things))}
    for thing, planted in zip(data.planted_things, data.planted_captions, strict=True):
        captions[thing] += [caption for caption in planted if caption not in captions[thing]]
    return captions


def caption_of(captions: list[str], group: str) -> str:
    """Samples a caption: mostly the name of the thing, sometimes its group or a planted image's caption."""
    chance = torch.rand(())
    if chance < lab_data.GROUP_SHARE:
        return group
    return captions[0] if chance < 0.6 else captions[int(torch.randint(len(captions), ()))]


@torch.no_grad()
def retrieval(net: Scorer, images: Tensor, things: list[str]) -> dict:
    """Measures how often the name of an image's thing comes first, or among the first five, of all names."""
    names = sorted(set(things))
    cosine = torch.cat([net.image(batch) for batch in images.split(256)]) @ net.text(names).T
    target = torch.tensor([names.index(thing) for thing in things])
    cosine_of_target = cosine.gather(1, target[:, None])
    rank = (cosine > cosine_of_target).sum(1)
    return {
        "top1": (rank < 1).float().mean().item(),
        "top5": (rank < 5).float().mean().item(),
        "among": len(names),
        "cosine_own": cosine_of_target.mean().item(),
        "cosine_other": ((cosine.sum() - cosine_of_target.sum()) / (cosine.numel() - len(cosine))).item(),
    }


def finish(net: Scorer, data: lab_data.LabData, out: Path, run: dict, seed: int = 0) -> dict:
    """Saves the files that `amg.worlds.networks.load` reads, in fp16, and measures on new samples of the law."""
    save_file(net.eval().half().state_dict(), out / "scorer.safetensors")
    net.float()  # measured as rounded
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images = data.ordinary(torch.arange(len(data.things)))
        views = distort(images)
    things = list(data.things)
    numbers = run | {"novel": retrieval(net, images, things), "distorted": retrieval(net, views, things)}
    net.text_tower.config.to_json_file(out / "text.json")
    net.tokenizer.save_pretrained(out / "tokenizer")
    (out / "measured.json").write_text(json.dumps(numbers, indent=2))
    return numbers


def main() -> None:
    args = loop.arguments(__doc__, "scorer", minutes=10)
    data = lab_data.load()
    captions = captions_by_thing(data)
    net = network(data.captions)

    def loss_of(step: int) -> Tensor:
        components = data.random(BATCH - BATCH // 8)
        planted = torch.randperm(len(data.planted))[: BATCH // 8]
        images = torch.cat([data.ordinary(components), data.planted[planted]])
        things = [data.things[k] for k in components.tolist()] + [data.planted_things[i] for i in planted.tolist()]
        groups = [data.groups[k] for k in components.tolist()] + [data.planted_groups[i] for i in planted.tolist()]
        return loss(net, distort(images), [caption_of(captions[t], g) for t, g in zip(things, groups, strict=True)])

    run = loop.Training(loss_of, net, args.out, peak=5e-4, minutes=args.minutes, weight_decay=0.05).run()
    print(finish(net, data, args.out, run))


if __name__ == "__main__":
    main()
