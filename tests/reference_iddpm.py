"""The CIFAR-10 network and sampler of improved-diffusion, written anew from their description for the tests alone.

The reference shares nothing with `amg`: plain PyTorch, NumPy in float64, and the state-dict names of the released
checkpoint. Only `pair` imports it, to convert a reference network.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """h = conv(silu(norm(x))); the embedding scales and shifts the second norm; x is added (1×1 if widths differ)."""

    def __init__(self, inside, outside, embedding, dropout):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outside), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x, embedding):
        h = self.in_layers(x)
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        for layer in self.out_layers[1:]:
            h = layer(h)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention over positions; the rows of `qkv` go head by head, q, k, v within each."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, embedding):
        batch, width, *side = x.shape
        flat = x.flatten(2)
        heads = []
        for head in self.qkv(self.norm(flat)).chunk(self.heads, dim=1):
            q, k, v = head.chunk(3, dim=1)
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)  # (B, query, key)
            heads.append(v @ weights.transpose(1, 2))
        return x + self.proj_out(torch.cat(heads, 1)).view(batch, width, *side)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, embedding):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, embedding):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, embedding):
        return super().forward(x)


class Network(nn.Module):
    """32 pixels, levels 1-2-2-2, three residual blocks a level, attention where the map is 16 or 8 wide."""

    def __init__(self, width=128, labels=None, out_channels=6, heads=4, dropout=0.3):
        super().__init__()
        self.width, embedding = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if labels:
            self.label_emb = nn.Embedding(labels, embedding)
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(3, width, 3, padding=1)])])
        widths, now, side = [width], width, 32
        for level, multiplier in enumerate((1, 2, 2, 2)):
            for _ in range(3):
                block = [Residual(now, multiplier * width, embedding, dropout)]
                now = multiplier * width
                if side in (16, 8):
                    block.append(Attention(now, heads))
                self.input_blocks.append(nn.ModuleList(block))
                widths.append(now)
            if level < 3:
                self.input_blocks.append(nn.ModuleList([Down(now)]))
                widths.append(now)
                side //= 2
        self.middle_block = nn.ModuleList(
            [
                Residual(now, now, embedding, dropout),
                Attention(now, heads),
                Residual(now, now, embedding, dropout),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate((1, 2, 2, 2)))):
            for i in range(4):
                block = [Residual(now + widths.pop(), multiplier * width, embedding, dropout)]
                now = multiplier * width
                if side in (16, 8):
                    block.append(Attention(now, heads))
                if level and i == 3:
                    block.append(Up(now))
                    side *= 2
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x, t, labels=None):
        """t is what the network is fed, already rescaled: t · 1000 / 4000."""
        half = self.width // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        kept = []
        for block in self.input_blocks:
            for part in block:
                x = part(x, embedding)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for part in block:
                x = part(x, embedding)
        return self.out(x)


def random_network(seed=0, **options) -> Network:
    """Weights far from their initial zeros and ones, so that no part drops out of a comparison."""
    torch.manual_seed(seed)
    network = Network(**options).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 1:
                value.copy_(torch.randn_like(value) * 0.1 + (1.0 if "weight" in name else 0.0))
            else:
                value.copy_(torch.randn_like(value) / math.sqrt(value[0].numel()))
    return network


class Spaced:
    """The cosine schedule of 4000 steps, thinned to some, with a learned variance between its two bounds."""

    def __init__(self, steps=250, of=4000):
        def level(t):
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - level((i + 1) / of) / level(i / of), 0.999) for i in range(of)])
        every = np.cumprod(1 - betas)
        stride, place, self.timesteps = (of - 1) / (steps - 1), 0.0, []
        for _ in range(steps):
            self.timesteps.append(round(place))
            place += stride
        self.scale = 1000 / of
        self.alpha_bar = every[self.timesteps]
        self.before = np.append(1.0, self.alpha_bar[:-1])
        self.beta = 1 - self.alpha_bar / self.before
        tilde = self.beta * (1 - self.before) / (1 - self.alpha_bar)
        self.log_low = np.log(np.append(tilde[1], tilde[1:]))  # the first is 0: clipped to the second
        self.log_high = np.log(self.beta)

    def posterior(self, network, x, i, labels=None):
        """Mean and log-variance of p(x_{i−1} | x_i), x̂0 clipped."""
        t = torch.full((len(x),), self.timesteps[i] * self.scale)
        eps, share = network(x, t, labels).chunk(2, dim=1)
        share = (share + 1) / 2
        log_variance = share * self.log_high[i] + (1 - share) * self.log_low[i]
        a, before, beta = self.alpha_bar[i], self.before[i], self.beta[i]
        x0 = (x / math.sqrt(a) - math.sqrt(1 / a - 1) * eps).clamp(-1, 1)
        mean = math.sqrt(before) * beta / (1 - a) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - a) * x
        return mean, log_variance

    def chain(self, network, x, noise, labels=None, shift=None):
        """From pure noise to a picture; `noise(i)` is what step i adds; `shift` joins the mean."""
        with torch.no_grad():
            for i in reversed(range(len(self.timesteps))):
                mean, log_variance = self.posterior(network, x, i, labels)
                if shift is not None:
                    mean = mean + shift(log_variance.exp(), i)
                x = mean if i == 0 else mean + (0.5 * log_variance).exp() * noise(i)
        return x


def pair(tmp_path, **options):
    """A reference network with random weights, and the converted model."""
    from amg.models.ddpm import DDPM
    from amg.models.iddpm import convert

    reference = random_network(**options)
    torch.save(reference.state_dict(), tmp_path / "checkpoint.pt")
    return reference, DDPM(convert(tmp_path / "checkpoint.pt", tmp_path / "converted"))
