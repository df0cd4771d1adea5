"""Trains the lab's image–text scorer, after CLIP (Radford et al., 2021).

    python -m experiments.recipes.train_lab_scorer --minutes 10

Every tenth ordinary picture is held out with its caption. Retrieval among those says how far the scorer generalises;
retrieval of unseen views of trained pictures says how well it knows what the lab's generators were taught.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from amg.worlds.networks import Scorer
from experiments.recipes import lab_data, lab_loop, lab_text
from experiments.recipes.lab_views import distort

BATCH = 96
HELD_OUT = 10


def network(captions: list[str], width: int = 96) -> Scorer:
    tokenizer = lab_text.tokenizer(captions)
    return Scorer(lab_text.config(tokenizer, width), tokenizer)


def loss(net: Scorer, images: Tensor, captions: list[str]) -> Tensor:
    """CLIP's cross entropy both ways; pictures that share a caption share the target."""
    logits = net.log_scale.exp().clamp(max=100) * net.image(images) @ net.text(captions).T
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def split(data: lab_data.LabData) -> tuple[Tensor, Tensor]:
    """Indices trained on and held out; planted pictures are always trained on."""
    held = data.ordinary[::HELD_OUT]
    everything = torch.arange(len(data.images))
    return everything[~torch.isin(everything, held)], held


@torch.no_grad()
def retrieval(net: Scorer, images: Tensor, captions: list[str]) -> dict:
    """Shares of pictures whose own caption is first, or among the first five, of all captions given."""
    cosine = net.image(images) @ net.text(captions).T
    own = cosine.diagonal()
    rank = (cosine > own[:, None]).sum(1)
    return {
        "top1": (rank < 1).float().mean().item(),
        "top5": (rank < 5).float().mean().item(),
        "among": len(captions),
        "cosine_own": own.mean().item(),
        "cosine_other": ((cosine.sum() - own.sum()) / (cosine.numel() - len(own))).item(),
    }


def finish(net: Scorer, data: lab_data.LabData, out: Path, run: dict, seed: int = 0) -> dict:
    """Measures, and saves what `amg.worlds.networks.load` reads."""
    net.eval()
    trained, held = split(data)
    trained = trained[torch.isin(trained, data.ordinary)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        views = distort(data.images[trained])
    numbers = run | {
        "held_out": retrieval(net, data.images[held], [data.captions[i][0] for i in held.tolist()]),
        "trained_unseen_views": retrieval(net, views, [data.captions[i][0] for i in trained.tolist()]),
    }
    save_file(net.state_dict(), out / "scorer.safetensors")
    net.text_tower.config.to_json_file(out / "text.json")
    net.tokenizer.save_pretrained(out / "tokenizer")
    (out / "measured.json").write_text(json.dumps(numbers, indent=2))
    return numbers


def main() -> None:
    args = lab_loop.arguments(__doc__, "scorer", minutes=10)
    data = lab_data.load()
    net = network(sorted({caption for captions in data.captions for caption in captions}))
    trained, _ = split(data)

    def loss_of(step: int) -> Tensor:
        indices = lab_data.draw(trained, BATCH).unique()
        images = distort(lab_data.augment(data.images[indices]))
        return loss(net, images, [data.caption(i) for i in indices.tolist()])

    run = lab_loop.train(loss_of, net, args.out, args.minutes, peak=5e-4, weight_decay=0.05)
    print(finish(net, data, args.out, run))


if __name__ == "__main__":
    main()
