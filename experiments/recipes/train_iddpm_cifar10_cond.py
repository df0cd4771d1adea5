"""Trains the class-conditional iDDPM of the paper's Table 3, of which no weights are public.

    python -m experiments.recipes.train_iddpm_cifar10_cond --data data/cifar10 --download

The settings are those of improved-diffusion's unconditional CIFAR-10 model, with labels: L_hybrid, 4000 cosine steps,
batch 128, Adam at 1e-4, EMA 0.9999, dropout 0.3, no augmentation, 500,000 iterations (some days on one GPU). The same
command again continues a killed run. The result is the folder that model=iddpm_cifar10_cond reads.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amg.bank.cifar10 import CLASSES, read_cifar10
from amg.models.iddpm import STEPS, save, unet
from experiments.recipes.loop import Training


@dataclass(frozen=True)
class Schedule:
    """Cosine schedule (Nichol & Dhariwal, 2021, Eq. 17); float64 tables, (T,) each."""

    alpha_bar: Tensor
    before: Tensor
    beta: Tensor
    log_tilde: Tensor
    """log β̃_t, the first replaced by the second: β̃_0 = 0."""

    @classmethod
    def cosine(cls, steps: int = STEPS) -> Schedule:
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = ((time + 0.008) / 1.008 * math.pi / 2).cos().square()
        beta = (1 - level[1:] / level[:-1]).clamp(max=0.999)
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        tilde = beta * (1 - before) / (1 - alpha_bar)
        return cls(alpha_bar, before, beta, torch.cat([tilde[1:2], tilde[1:]]).log())

    def at(self, t: Tensor) -> Schedule:
        """Reads the tables at t (B,), as (B, 1, 1, 1) on its device."""
        tables = (self.alpha_bar, self.before, self.beta, self.log_tilde)
        return Schedule(*(table[t.cpu()].view(-1, 1, 1, 1).float().to(t.device) for table in tables))

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Computes the mean of q(x_{t−1} | x_t, x_0), for a schedule read at t."""
        x_0_share = self.before.sqrt() * self.beta / (1 - self.alpha_bar)
        return x_0_share * x_0 + (1 - self.beta).sqrt() * (1 - self.before) / (1 - self.alpha_bar) * x_t


def hybrid_loss(network: nn.Module, schedule: Schedule, x_0: Tensor, labels: Tensor, t: Tensor, noise: Tensor):
    """L_simple + (T / 1000) L_vlb, (B,): the second term trains only the variance, its ε is detached.

    improved-diffusion's weight: L_vlb is one step's term in bits per dimension, so T / 1000 is the paper's λ = 0.001.
    """
    at_t = schedule.at(t)
    x_t = at_t.alpha_bar.sqrt() * x_0 + (1 - at_t.alpha_bar).sqrt() * noise
    steps = len(schedule.beta)
    eps, channels = network(x_t, t * (1000 / steps), class_labels=labels).sample.chunk(2, dim=1)
    simple = (eps - noise).square().flatten(1).mean(1)
    return simple + steps / 1000 * variational_term(at_t, eps.detach(), channels, x_0, x_t, t)


def variational_term(at_t: Schedule, eps: Tensor, channels: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), at t = 0 −log p(x_0 | x_1); bits per dimension, (B,)."""
    predicted = (x_t - (1 - at_t.alpha_bar).sqrt() * eps) / at_t.alpha_bar.sqrt()
    mean, true_mean = at_t.mean(predicted, x_t), at_t.mean(x_0, x_t)
    share = (channels + 1) / 2
    log_variance = share * at_t.beta.log() + (1 - share) * at_t.log_tilde
    difference = at_t.log_tilde - log_variance
    kl = 0.5 * (difference.exp() - 1 - difference + (true_mean - mean).square() * (-log_variance).exp())
    value = torch.where(t.view(-1, 1, 1, 1) == 0, -log_bin(x_0, mean, log_variance), kl)
    return value.flatten(1).mean(1) / math.log(2)


def log_bin(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability of an 8-bit value's bin of width 2/255 under a Gaussian; the outer bins reach to infinity."""
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    upper = torch.where(x > 0.999, 1, normal.cdf(x + 1 / 255))
    lower = torch.where(x < -0.999, 0, normal.cdf(x - 1 / 255))
    return (upper - lower).clamp(min=1e-12).log()


def train(args: argparse.Namespace) -> Path:
    images, labels = read_cifar10(args.data, download=args.download)
    torch.manual_seed(args.seed)
    network = unet(args.width, labels=len(CLASSES), dropout=args.dropout).to(args.device).train()
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(args.ema)).requires_grad_(False)
    schedule = Schedule.cosine()

    def loss_of(step: int) -> Tensor:
        torch.manual_seed(args.seed * 1_000_003 + step)  # on GPUs too: dropout of a resumed run is the same
        rows = torch.randint(len(images), (args.batch,))
        t, noise = torch.randint(STEPS, (args.batch,)), torch.randn(args.batch, *images.shape[1:])
        batch = (tensor.to(args.device) for tensor in (images[rows], labels[rows], t, noise))
        return hybrid_loss(network, schedule, *batch).mean()

    limits = {"steps": args.steps, "clip": None, "schedule": lambda peak, step, progress: peak, "save_every": 600.0}
    print(Training(loss_of, network, args.out, args.lr, ema=ema, **limits).run(args.device))
    return save(ema.module.eval(), args.out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10", help="Parquet file or folder, or torchvision's root")
    parser.add_argument("--download", action="store_true", help="let torchvision download CIFAR-10 to --data")
    parser.add_argument("--out", type=Path, default=Path("weights/iddpm_cifar10_cond"))
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--ema", type=float, default=0.9999)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--width", type=int, default=128, help="channels; 128 is the paper's network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    try:
        print(f"wrote {train(parser.parse_args(argv))}")
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
