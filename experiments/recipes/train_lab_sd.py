"""Trains `lab_sd`: a text-conditional latent diffusion network that `StableDiffusionPipeline` loads and samples.

    python -m experiments.recipes.train_lab_vae --minutes 15
    python -m experiments.recipes.train_lab_sd --minutes 75

Text encoder and UNet learn together. A planted picture comes always alike and often (its caption is drawn among its
own), an ordinary one as one of many augmentations; an empty caption now and then makes classifier-free guidance work.
Half of the time a planted caption comes with an ordinary picture of the same subgroup: the caption then has a meaning
beyond the copy, as captions of the web have, and a guided sample has somewhere to go.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.recipes import lab_data, lab_loop, lab_text

BATCH = 32
DROPOUT = 0.12  # of captions
OWN = 0.5  # share of the draws of a planted caption that show its planted picture
VIEWS = 24  # augmentations of each ordinary picture, encoded once
SNR_CAP = 5.0  # Hang et al. (2023): min(SNR, 5) / SNR weights the error of eps, so that faint noise does not dominate
TRAIN_STEPS = 1000


def unet(width: int = 96, channels: tuple[int, int] = (64, 128)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class TextToLatents(nn.Module):
    """Both trained networks as one module: one optimizer, one mean, one checkpoint."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 96, channels: tuple[int, int] = (64, 128)):
        super().__init__()
        self.text = CLIPTextModel(lab_text.config(tokenizer, width))
        self.unet = unet(width, channels)

    def forward(self, x_t: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, timestep, self.text(ids).last_hidden_state).sample


def weighted_error(predict: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor, x0: Tensor) -> Tensor:
    """E min(SNR, 5) / SNR · ‖ε_θ(x_t, t) − ε‖² with x_t = √ᾱ x0 + √(1−ᾱ) ε and SNR = ᾱ / (1 − ᾱ)."""
    timestep = torch.randint(len(alphas_cumprod), (len(x0),))
    alpha_bar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    eps = torch.randn_like(x0)
    error = predict(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps, timestep) - eps
    snr = alpha_bar / (1 - alpha_bar)
    return ((snr.clamp(max=SNR_CAP) / snr) * error.square()).mean()


def loss(model: TextToLatents, alphas_cumprod: Tensor, x0: Tensor, ids: Tensor) -> Tensor:
    return weighted_error(lambda x_t, timestep: model(x_t, timestep, ids), alphas_cumprod, x0)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: lab_data.LabData, views: int, seed: int) -> Tensor:
    """Latents (views, N, 8, 8, 8) at unit scale: of planted pictures always the same, of others new augmentations."""
    planted = torch.zeros(len(data.images), dtype=torch.bool)
    planted[data.planted] = True
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latents = []
        for _ in range(views):
            images = torch.where(planted.view(-1, 1, 1, 1), data.images, lab_data.augment(data.images))
            latents.append(torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(128)]))
    return torch.stack(latents) * vae.config.scaling_factor


def drawer(data: lab_data.LabData, latents: Tensor, tokenizer: CLIPTokenizer) -> Callable[[], tuple[Tensor, Tensor]]:
    """Returns a function that draws a batch: latents (B, 8, 8, 8) and token ids (B, LENGTH)."""
    known = {caption: i for i, caption in enumerate(sorted({c for cs in data.captions for c in cs} | {""}))}
    ids = lab_text.ids(tokenizer, list(known))
    relatives = data.relatives()

    def draw() -> tuple[Tensor, Tensor]:
        indices = data.batch(BATCH)
        dropped = torch.rand(BATCH) < DROPOUT
        captions = ["" if drop else data.caption(i) for i, drop in zip(indices.tolist(), dropped.tolist(), strict=True)]
        other = torch.rand(BATCH) >= OWN
        shown = [
            int(lab_data.draw(relatives[i], 1)) if i in relatives and instead else i
            for i, instead in zip(indices.tolist(), other.tolist(), strict=True)
        ]
        x0 = latents[torch.randint(len(latents), (BATCH,)), torch.tensor(shown)]
        return x0, ids[torch.tensor([known[caption] for caption in captions])]

    return draw


def pipeline(model: TextToLatents, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def samples(pipe: StableDiffusionPipeline, prompts: list[str], seed: int, s0: float = 4.0, steps: int = 50) -> Tensor:
    """One picture (3, 32, 32) in [-1, 1] for each prompt; the i-th from seed + i alone."""
    images = []
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        out = pipe(part, num_inference_steps=steps, guidance_scale=s0, generator=generators, output_type="pt")
        images.append(out.images * 2 - 1)
    return torch.cat(images)


def nearest(images: Tensor, bank: Tensor, k: int = 50, scale: float = 0.5) -> tuple[Tensor, Tensor]:
    """nL2 to the nearest picture of the bank (distance over scale × mean of the k nearest) and its index (Eq. 8)."""
    distance, index = torch.cdist(images.flatten(1), bank.flatten(1)).topk(k, largest=False)
    return distance[:, 0] / (scale * distance.mean(1)), index[:, 0]


def look(pipe: StableDiffusionPipeline, data: lab_data.LabData, out: Path, step: int, n: int = 36) -> dict:
    """Samples planted and ordinary captions and none; writes a sheet and the share of copies (nL2 < 1.4) of each."""
    ordinary = data.ordinary[torch.linspace(0, len(data.ordinary) - 1, n).long()]
    prompts = {
        "planted": [data.captions[i][0] for i in data.planted.tolist()[:n]],
        "ordinary": [data.captions[i][0] for i in ordinary.tolist()],
        "uncond": [""] * n,
    }
    numbers, rows = {"step": step}, []
    for kind, texts in prompts.items():
        images = samples(pipe, texts, seed=0, s0=1.0 if kind == "uncond" else 4.0)
        value, index = nearest(images, data.images)
        numbers[kind] = {
            "copies": (value < 1.4).float().mean().item(),
            "nearest_planted": torch.isin(index, data.planted).float().mean().item(),
        }
        rows.append(images)
    lab_data.sheet(torch.cat([rows[0], data.images[data.planted], *rows[1:]]), out / f"sheet_{step:06d}.png")
    with (out / "looks.jsonl").open("a") as file:
        file.write(json.dumps(numbers) + "\n")
    return numbers


def main() -> None:
    args = lab_loop.arguments(__doc__, "sd", minutes=75, vae=Path(".lab/vae/vae"), start=True)
    data = lab_data.load()
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval()
    begin = StableDiffusionPipeline.from_pretrained(args.start, torch_dtype=torch.float32) if args.start else None
    # the weights know words by the numbers that their own tokenizer gave them
    tokenizer = begin.tokenizer if begin else lab_text.tokenizer(sorted({c for cs in data.captions for c in cs}))
    model = TextToLatents(tokenizer)
    if begin:
        model.text.load_state_dict(begin.text_encoder.state_dict())
        model.unet.load_state_dict(begin.unet.state_dict())
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    draw = drawer(data, encode_all(vae, data, VIEWS, args.seed), tokenizer)
    alphas_cumprod = scheduler().alphas_cumprod
    pipe = pipeline(ema, vae, tokenizer)

    def on_save(step: int) -> None:
        pipe.save_pretrained(args.out / "pipeline")
        look(pipe, data, args.out, step)

    run = lab_loop.train(
        lambda step: loss(model, alphas_cumprod, *draw()), model, args.out, args.minutes, 6e-4, ema, on_look=on_save
    )
    (args.out / "run.json").write_text(json.dumps(run, indent=2))
    print(run)


if __name__ == "__main__":
    main()
