"""A real network at toy size, answering in any prediction type."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor

from amg.models.base import Model
from amg.step import Step

CAPTIONS = ("zero", "one", "two")
NULL = len(CAPTIONS)


class Toy(Model):
    """A random `UNet2DModel` as `amg.models.base.Model`: the same ε whatever the scheduler asks it to predict.

    Labels 0 … 2 and the captions "zero", "one", "two" name the same three classes; None is a fourth.
    """

    def __init__(self, scheduler, dtype=torch.float32, conditional=False, learned_variance=False):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.unet = UNet2DModel(
                sample_size=8,
                out_channels=6 if learned_variance else 3,
                layers_per_block=1,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                norm_num_groups=4,
                num_class_embeds=len(CAPTIONS) + 1 if conditional else None,
            )
            self.unet = self.unet.to(dtype).eval().requires_grad_(False)
        self.scheduler, self.dtype, self.device, self.shape = scheduler, dtype, torch.device("cpu"), (3, 8, 8)
        self.conditional, self.rows = conditional, 0
        """`rows` counts what the network was asked for."""

    def __call__(self, x_t: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.rows += len(x_t)
        if self.conditional and condition is None:
            condition = self.encode([None] * len(x_t))
        eps, *variance = self.unet(x_t, timestep, class_labels=condition).sample.split(3, dim=1)
        alpha_bar = self.scheduler.alphas_cumprod[timestep].to(self.dtype)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x0 = (x_t - noise * eps) / signal
        kind = self.scheduler.config.prediction_type
        output = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0}[kind]
        return output, variance[0] if variance else None

    def encode(self, conditions: Sequence[str | int | None]) -> Tensor | None:
        if not self.conditional:
            return None
        return torch.tensor([NULL if c is None else CAPTIONS.index(c) if isinstance(c, str) else c for c in conditions])

    def decode(self, x0: Tensor) -> Tensor:
        return x0


def made(**changes) -> Step:
    """x_t = 0.8, ε = 0.5, √ᾱ = 0.8, √(1−ᾱ) = 0.6, so x̂0 = (0.8 − 0.3) / 0.8 = 0.625."""
    ones = torch.ones(3, 3, 1, 1, dtype=torch.float64)
    fields = {
        "x_t": 0.8 * ones,
        "t": torch.full((3,), 0.5, dtype=torch.float64),
        "timestep": 500,
        "alpha_bar": torch.full((3,), 0.64, dtype=torch.float64),
        "eps": 0.5 * ones,
        "eps_uncond": 0.4 * ones,
        "eps_cond": 0.6 * ones,
        "s0": 3.0,
        "seeds": (0, 1, 2),
        "x0": 0.625 * ones,
        "denoise": lambda rows, captions: ones[rows],
        "decode": lambda x0: x0,
    }
    return Step(**fields | changes)
