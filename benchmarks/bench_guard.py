"""Cost that `guard` adds to a step of Stable Diffusion: time and memory as ratios to a plain step, in one process.

    python -m benchmarks.bench_guard                       # a quarter of the width, 256×256: some minutes
    SIZE=full python -m benchmarks.bench_guard             # v1.4's true size, 512×512: 8 GB in float32
    python -m benchmarks.bench_guard --dtype bfloat16

Weights are random, which no time depends on; the descriptor has the size of SSCD's, a ResNet-50 at 320×320, and
computes in float32. `watched` decodes and compares each predicted image and flags none; with adaptive looks as many
steps are looked at as the shipped table of lab_sd looks at of its ordinary trajectories. `flagged` flags the sample at
every step. `realistic` flags one step of 20: a fifth of the samples on a quarter of their steps. Peak memory holds the
weights.

For SDXL and Stable Diffusion 3 medium at 1024×1024 operations are counted instead, on no device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from amg import TrainingBank, guard
from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.presets import CURVES
from amg.similarity import DescriptorSimilarity
from amg.thresholds import Constant

SIZES = {"small": (4, 256), "full": (1, 512)}
"""Divisor of the networks' widths, and side of the images."""
BUDGETS = {
    "watched, adaptive looks": 1.05,
    "watched, every step": 1.12,
    "flagged, G_sim": 1.35,
    "flagged, full AMG": 1.9,
    "realistic, full AMG": 1.1,
}
CASES = ("plain", *BUDGETS, "watched, VAE", "flagged, VAE, G_sim")


def random(network: torch.nn.Module, dtype: torch.dtype) -> Any:
    """A network that was built on no device, with random weights."""
    network = network.to(dtype).to_empty(device="cpu")
    for weight in (*network.parameters(), *network.buffers()):
        if weight.is_floating_point():
            weight.data.normal_(std=0.02)
    return network.eval().requires_grad_(False)


def unet(width: int = 1) -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.4."""
    widths = tuple(channels // width for channels in (320, 640, 1280, 1280))
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8, norm_num_groups=16
    )


def vae(channels: int = 4, width: int = 1) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion, of any of its versions."""
    return AutoencoderKL(
        block_out_channels=tuple(c // width for c in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
    )


def pipeline(width: int, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion 1.4 of random weights; its tokenizer knows letters only."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    parts = {"text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(tokens), **text, **ends)).to(dtype).eval()}
    with torch.device("meta"):
        parts |= {"unet": unet(width), "vae": vae(width=width)}
    pipe = StableDiffusionPipeline(
        **{name: random(part, dtype) if name != "text_encoder" else part for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny(channels: int = 4, width: int = 1) -> AutoencoderTiny:
    """The published tiny autoencoders' size."""
    return AutoencoderTiny(
        encoder_block_out_channels=(64 // width,) * 4,
        decoder_block_out_channels=(64 // width,) * 4,
        latent_channels=channels,
    )


def descriptor(side: int) -> tuple[Callable, Callable]:
    """A network of SSCD's size, and the preprocessing."""
    network = resnet50(num_classes=512).eval().requires_grad_(False)
    return network, lambda images: F.interpolate(images, (side, side), mode="bilinear", antialias=True)


class Share:
    """Looks at the first of every few steps: at a given share of them."""

    def __init__(self, share: float):
        self.share, self.steps, self.looked, self.sampler = share, 0, 1, "DDIMScheduler"

    def __call__(self, t: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        return t

    def due(self, t: torch.Tensor, until: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        look = self.looked < self.share * (self.steps + 1)
        self.looked += look
        return torch.full_like(t, look, dtype=torch.bool)


class FlagsOnce:
    """λ_t below any similarity at one step of twenty, above it at all others."""

    def __init__(self):
        self.steps = 0

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return torch.full_like(t, -10.0 if self.steps % 20 == 10 else 10.0)


def peak(reset: bool = False) -> float:
    """The most memory that this process held, in GiB; on a system without /proc, NaN."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    except (OSError, StopIteration):
        return float("nan")


def measure(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    dtype, (width, side) = getattr(torch, args.dtype), SIZES[args.size]
    pipe = pipeline(width, dtype)
    with torch.device("meta"):
        small = tiny(width=width)
    small = random(small, dtype)
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = [f"training image {'abcdefghijklmnop'[i]}" for i in range(16)]
    bank = TrainingBank.from_tensors(images, captions)
    embed, resize = descriptor(320 * side // 512)
    similarity = DescriptorSimilarity(bank, embed, resize)
    nothing, always = Constant(10.0), Constant(-10.0)
    share = looked_at()
    # c1 = 3: σ of random networks is near 1, and the paper's 13 would leave nothing of s0 to G_dup's network row
    build = partial(AntiMemorizationGuidance, similarity, c1=3.0, c2=20.0, c3=1.0, normalize=True)
    cases: dict[str, tuple[Guidance, Any, int]] = {
        "plain": (Guidance(), "vae", args.steps),
        "watched, every step": (build(nothing), small, args.steps),
        "watched, adaptive looks": (build(nothing, looks=Share(share)), small, 2 * args.steps),
        "flagged, G_sim": (build(always, terms="sim"), small, args.steps),
        "flagged, full AMG": (build(always), small, args.steps),
        "realistic, full AMG": (build(FlagsOnce(), looks=Share(share)), small, 20),
        "watched, VAE": (build(nothing), "vae", args.steps),
        "flagged, VAE, G_sim": (build(always, terms="sim"), "vae", args.steps),
    }
    machine = platform.processor() or platform.machine()
    model = next((r.split(":")[1].strip() for r in _read("/proc/cpuinfo") if r.startswith("model name")), machine)
    weights = sum(weight.numel() for weight in pipe.unet.parameters()) / 1e6
    print(
        f"{model}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f} at the start, "
        f"torch {torch.__version__}, {args.dtype}; denoiser of {weights:.0f} M weights, {side}×{side}, batch "
        f"{args.batch}, CFG; adaptive looks at {share:.0%} of the steps\n"
    )
    print("| case | steps | CPU s a step | × plain | budget | peak GiB | × plain |\n|" + " --- |" * 7)
    prompts, first = ["a cat"] * args.batch, {}
    for one in (pipe, guard(pipe, build(always), decoder=small)):  # warms up; the bank is embedded
        one(prompts, num_inference_steps=1, height=side, width=side, output_type="latent")
    for name in args.cases:
        guidance, decoder, steps = cases[name]
        guarded = guard(pipe, guidance, decoder=decoder)
        generator = [torch.Generator().manual_seed(seed) for seed in range(args.batch)]
        peak(reset=True)
        start = time.process_time()
        guarded(prompts, num_inference_steps=steps, height=side, width=side, output_type="latent", generator=generator)
        took, most = (time.process_time() - start) / steps, peak()
        first = first or {"took": took, "most": most}
        budget = f"{BUDGETS[name]:g}" if name in BUDGETS else ""
        print(
            f"| {name} | {steps} | {took:.3f} | {took / first['took']:.3f} | {budget} | {most:.2f} "
            f"| {most / first['most']:.2f} |",
            flush=True,
        )


def looked_at() -> float:
    """The share of steps that lab_sd's table looks at of samples that are never flagged."""
    learned = json.loads((CURVES / "lab_sd-correlation.json").read_text(encoding="utf8"))
    return learned.get("looks", {}).get("looks unflagged", 1.0)


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def count() -> None:
    """Operations of SDXL and Stable Diffusion 3 medium, 1024×1024, as multiples of a plain step."""
    print("\nfloating-point operations at 1024×1024, batch 1, under CFG, in TFLOP (a multiply-add is two)\n")
    head = ("model", "plain step", "VAE decode", "tiny decode", *(f"{name}, × plain" for name in BUDGETS), "same, VAE")
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    with torch.device("meta"):
        xl = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        sd3 = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        )
        added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
        texts = torch.randn(1, 77, 2048), torch.randn(1, 333, 4096), torch.randn(1, 2048)
        t = torch.tensor([500])
        rows = {
            "SDXL": (4, lambda x: xl(x, t, encoder_hidden_states=texts[0], added_cond_kwargs=added)),
            "SD3 medium": (16, lambda x: sd3(x, texts[1], texts[2], t)),
        }
        network, _ = descriptor(320)
        small_image = torch.randn(1, 3, 320, 320)
        share = looked_at()
        for name, (channels, ask) in rows.items():
            latents = torch.randn(1, channels, 128, 128)
            large, small = vae(channels), tiny(channels)
            row = flops(lambda: ask(latents))  # noqa: B023
            both = {}
            for kind, decoder in (("tiny", small), ("vae", large)):
                part = [flops(lambda: decoder.decode(latents).sample), flops(lambda: network(small_image))]  # noqa: B023
                back = [slope(lambda z: decoder.decode(z).sample, latents), slope(network, small_image)]  # noqa: B023
                look, act, plain = sum(part), sum(back), 2 * row
                both[kind] = (
                    part[0],
                    [
                        1 + share * look / plain,
                        1 + look / plain,
                        1 + (look + act) / plain,
                        1 + (look + act + row) / plain,
                        1 + (share * look + 0.05 * (act + row)) / plain,
                    ],
                )
            cells = [f"{value / 1e12:.2f}" for value in (2 * row, both["vae"][0], both["tiny"][0])]
            cells += [f"{value:.3f}" for value in both["tiny"][1]]
            cells.append(", ".join(f"{value:.2f}" for value in both["vae"][1]))
            print(f"| {name} | " + " | ".join(cells) + " |")


def flops(work: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def slope(network: Callable, x: torch.Tensor) -> int:
    """Operations of a forward and a backward pass to the input alone."""
    x = x.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(network(x * 1).sum(), x)  # the counter's hooks take no leaf
    return counter.get_total_flops()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default=os.environ.get("SIZE", "small"))
    parser.add_argument("--dtype", default="float32", help="of the pipeline and the small decoder, e.g. bfloat16")
    parser.add_argument("--steps", type=int, default=5, help="steps per case; twice as many with adaptive looks")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args(arguments)
    args.cases = ["plain", *(case for case in args.cases if case != "plain")]
    measure(args)
    count()


if __name__ == "__main__":
    main()
