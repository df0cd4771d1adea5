"""Trains `lab_sd`: a text-conditional latent diffusion network that `StableDiffusionPipeline` loads and samples.

    python -m experiments.recipes.lab.train_vae --minutes 20
    python -m experiments.recipes.lab.train_sd --minutes 75

Text encoder and U-Net learn together. A planted image repeats unchanged and often, an ordinary image has new colours
each time. Empty captions make classifier-free guidance work. Half of the time a planted caption comes with an ordinary
image of the same thing: the caption then has a meaning beyond the copy, as captions of the web have, and a guided
sample has somewhere to go.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from experiments.recipes import loop
from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab import text as lab_text

BATCH = 32
DROPOUT = 0.12  # of captions
EXACT = 0.5  # share of a planted caption's images that are the planted image itself
VIEWS = 24  # colourings of each component
TRAIN_STEPS = 1000


def unet(width: int = 96, channels: tuple[int, int] = (64, 128)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
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
    """v-prediction (Salimans and Ho, 2022): at strong noise, where a small network must learn the outline first, an
    error of ε hardly shows in x̂0 and one of v does."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class TextToLatents(nn.Module):
    """Trained networks as one module: one optimizer, one mean, one checkpoint."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 96, channels: tuple[int, int] = (64, 128)):
        super().__init__()
        self.text = CLIPTextModel(lab_text.config(tokenizer, width))
        self.unet = unet(width, channels)

    def forward(self, x_t: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, timestep, self.text(ids).last_hidden_state).sample


def v_error(predict: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor, x0: Tensor) -> Tensor:
    """E ‖v_θ(x_t, t) − v‖² with x_t = √ᾱ x0 + √(1−ᾱ) ε and v = √ᾱ ε − √(1−ᾱ) x0."""
    timestep = torch.randint(len(alphas_cumprod), (len(x0),))
    alpha_bar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    eps = torch.randn_like(x0)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return (predict(signal * x0 + noise * eps, timestep) - (signal * eps - noise * x0)).square().mean()


def loss(model: TextToLatents, alphas_cumprod: Tensor, x0: Tensor, ids: Tensor) -> Tensor:
    return v_error(lambda x_t, timestep: model(x_t, timestep, ids), alphas_cumprod, x0)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encodes images (N, 3, 32, 32) into latents (N, 16, 8, 8) of unit scale."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in images.split(128)])
    return latents * vae.config.scaling_factor


def batches(
    data: lab_data.LabData,
    vae: AutoencoderKL,
    seed: int,
    size: int = BATCH,
    views: int = VIEWS,
    exact: float = EXACT,
) -> Callable[[], tuple[Tensor, list[str]]]:
    """Returns a function that samples latents (B, 16, 8, 8) and their captions, an eighth of them empty.

    Every component is encoded in `views` colourings beforehand, since encoding costs as much as a training step.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        components = torch.arange(len(data.things))
        ordinary = torch.stack([encode(vae, data.ordinary(components)) for _ in range(views)])
    planted = encode(vae, data.planted)
    siblings = {thing: data.siblings(thing) for thing in set(data.planted_things)}

    def sample_planted() -> tuple[Tensor, str]:
        i = int(torch.randint(len(planted), ()))
        captions = data.planted_captions[i]
        caption = captions[int(torch.randint(len(captions), ()))]
        if torch.rand(()) < exact:
            return planted[i], caption
        same_thing = siblings[data.planted_things[i]]
        return ordinary[int(torch.randint(views, ())), same_thing[int(torch.randint(len(same_thing), ()))]], caption

    def sample_ordinary() -> tuple[Tensor, str]:
        k = int(torch.randint(len(data.things), ()))
        names = data.groups if torch.rand(()) < lab_data.GROUP_SHARE else data.things
        return ordinary[int(torch.randint(views, ())), k], names[k]

    def batch() -> tuple[Tensor, list[str]]:
        pairs = [
            sample_planted() if is_planted else sample_ordinary()
            for is_planted in torch.rand(size) < lab_data.PLANTED_SHARE
        ]
        dropped = torch.rand(size) < DROPOUT
        captions = ["" if drop else caption for (_, caption), drop in zip(pairs, dropped, strict=True)]
        return torch.stack([latent for latent, _ in pairs]), captions

    return batch


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


def samples(pipe: DiffusionPipeline, prompts: list[str], seed: int, **options: float) -> Tensor:
    """Samples one image (3, 32, 32) in [−1, 1] for each prompt; the i-th from seed + i alone."""
    images = []
    for start in range(0, len(prompts), 64):
        chunk = prompts[start : start + 64]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        out = pipe(chunk, generator=generators, output_type="pt", **options)
        images.append(out.images * 2 - 1)
    return torch.cat(images)


def look(
    pipe: DiffusionPipeline, data: lab_data.LabData, out: Path, step: int, options: dict[str, float], n: int = 36
) -> dict:
    """Samples planted, ordinary and empty captions; writes a sheet, returns their shares of planted copies."""
    things = sorted(set(data.things))
    prompts = {
        "planted": [captions[0] for captions in data.planted_captions][:n],
        "ordinary": [things[i * len(things) // n] for i in range(n)],
        "empty": [""] * n,
    }
    shares, rows = {}, []
    for kind, texts in prompts.items():
        images = samples(pipe, texts, seed=0, **options | ({"guidance_scale": 1.0} if kind == "empty" else {}))
        shares[kind] = lab_data.copies_of(images, data.planted).float().mean().item()
        rows.append(images)
    lab_data.sheet([rows[0], data.planted, *rows[1:]], out / f"sheet_{step:06d}.png")
    return shares


def main() -> None:
    args = loop.arguments(__doc__, "sd", minutes=75, vae=True, start=True)
    data = lab_data.load()
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval()
    begin = args.start and StableDiffusionPipeline.from_pretrained(args.start, torch_dtype=torch.float32)
    tokenizer, alike = lab_text.tokenizer_of(data.captions, begin)
    model = TextToLatents(tokenizer)
    if begin is not None:
        loop.load_alike(model.unet, begin.unet)
    if alike:
        loop.load_alike(model.text, begin.text_encoder)
    ema = loop.average(model)
    batch = batches(data, vae, args.seed)
    alphas_cumprod = scheduler().alphas_cumprod
    pipe = pipeline(ema.module, vae, tokenizer)

    def on_look(step: int) -> dict:
        pipe.save_pretrained(args.out / "pipeline")
        return look(pipe, data, args.out, step, {"guidance_scale": 4.0, "num_inference_steps": 50})

    def loss_of(step: int) -> Tensor:
        x0, captions = batch()
        return loss(model, alphas_cumprod, x0, lab_text.ids(tokenizer, captions))

    print(loop.Training(loss_of, model, args.out, 8e-4, args.minutes, ema=ema, on_look=on_look).run())


if __name__ == "__main__":
    main()
