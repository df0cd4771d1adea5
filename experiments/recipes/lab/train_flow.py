"""Trains `lab_flow`: a small transformer with rectified flow that `StableDiffusion3Pipeline` loads and samples.

    python -m experiments.recipes.lab.train_vae --minutes 20
    python -m experiments.recipes.lab.train_flow --minutes 80 --out .lab/teacher
    python -m experiments.recipes.lab.train_flow --minutes 9 --distil 2.5 --start .lab/teacher/pipeline

Data, captions and autoencoder are those of `lab_sd`. Both text encoders and the transformer learn together. Some
captions are empty. The last command distils classifier-free guidance at one scale into the network (Meng et al.,
2023): sampling then needs no guidance, as with most models of today.
"""

import copy

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from experiments.recipes import loop
from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab import text as lab_text
from experiments.recipes.lab.train_sd import batches, look

BATCH = 32
EXACT = 0.75  # share of a planted caption's images that are the planted image itself; no guidance raises it
TEXT_WIDTH = 64  # of each of the two text encoders
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # for from_pretrained
NO_T5 = 1  # tokens of zeros that stand where a T5 encoder's would: the pipeline's max_sequence_length
OPTIONS = {"guidance_scale": 1.0, "num_inference_steps": 28, "max_sequence_length": NO_T5}


def transformer(width: int = 160, layers: int = 6) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps of x_t = (1 − σ) x_0 + σ ε; without a shift, since a small image has few tokens."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


class TextToFlow(nn.Module):
    """Trained networks as one module: one optimizer, one mean, one checkpoint."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 160, layers: int = 6):
        super().__init__()
        config = lab_text.config(tokenizer, TEXT_WIDTH)
        self.text, self.text_2 = CLIPTextModelWithProjection(config), CLIPTextModelWithProjection(config)
        self.transformer = transformer(width, layers)

    def forward(self, x_t: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        """Predicts v = ε − x_0, (B, 16, 8, 8), from timesteps in [0, 1000]; embeds text as the pipeline does."""
        outputs = [encoder(ids, output_hidden_states=True) for encoder in (self.text, self.text_2)]
        words = torch.cat([output.hidden_states[-2] for output in outputs], dim=2)
        words = torch.cat([words, words.new_zeros(len(words), NO_T5, words.shape[2])], dim=1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=1)
        return self.transformer(x_t, words, pooled, timestep).sample


def loss(model: TextToFlow, x0: Tensor, ids: Tensor) -> Tensor:
    """E ‖v_θ(x_t, σ) − (ε − x_0)‖² with σ = sigmoid(n), n ~ N(0, 1) (Esser et al., 2024)."""
    sigma = torch.randn(len(x0)).sigmoid()
    eps = torch.randn_like(x0)
    level = sigma.view(-1, 1, 1, 1)
    return (model((1 - level) * x0 + level * eps, 1000 * sigma, ids) - (eps - x0)).square().mean()


def distilled_loss(student: TextToFlow, teacher: TextToFlow, x0: Tensor, ids: Tensor, null: Tensor, s: float) -> Tensor:
    """E ‖v_θ(x_t, y) − v‖² with v = v_0 + s (v_y − v_0) of the teacher under caption and under none, null (1, L)."""
    sigma = torch.rand(len(x0))
    level = sigma.view(-1, 1, 1, 1)
    x_t = (1 - level) * x0 + level * torch.randn_like(x0)
    with torch.no_grad():
        without, under = (teacher(x_t, 1000 * sigma, tokens) for tokens in (null.expand_as(ids), ids))
    return (student(x_t, 1000 * sigma, ids) - without - s * (under - without)).square().mean()


def pipeline(model: TextToFlow, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    pipe = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=scheduler(),
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokenizer,
        text_encoder_2=model.text_2,
        tokenizer_2=tokenizer,
        **WITHOUT_T5,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    args = loop.arguments(__doc__, "flow", minutes=80, vae=True, start=True, distil=True)
    data = lab_data.load()
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval()
    vae.register_to_config(shift_factor=0.0)
    begin = args.start and StableDiffusion3Pipeline.from_pretrained(args.start, torch_dtype=torch.float32, **WITHOUT_T5)
    tokenizer, alike = lab_text.tokenizer_of(data.captions, begin)
    model = TextToFlow(tokenizer)
    if begin is not None:
        loop.load_alike(model.transformer, begin.transformer)
    if alike:
        loop.load_alike(model.text, begin.text_encoder)
        loop.load_alike(model.text_2, begin.text_encoder_2)
    ema = loop.average(model)
    if args.distil:
        teacher, null = copy.deepcopy(model).requires_grad_(False).eval(), lab_text.ids(tokenizer, [""])
        teacher.transformer.compile()
    model.transformer.compile()
    batch = batches(data, vae, args.seed, BATCH, exact=EXACT)
    pipe = pipeline(ema.module, vae, tokenizer)

    def on_look(step: int) -> dict:
        pipe.save_pretrained(args.out / "pipeline")
        return look(pipe, data, args.out, step, OPTIONS)

    def loss_of(step: int) -> Tensor:
        x0, captions = batch()
        ids = lab_text.ids(tokenizer, captions)
        with loop.bf16():
            if args.distil:
                return distilled_loss(model, teacher, x0, ids, null, args.distil)
            return loss(model, x0, ids)

    peak = 3e-4 if args.distil else 8e-4
    print(loop.Training(loss_of, model, args.out, peak, args.minutes, ema=ema, on_look=on_look).run())


if __name__ == "__main__":
    main()
