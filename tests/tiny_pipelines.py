"""Real pipelines of diffusers at toy size, with random weights, built in memory."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.modular_pipelines.stable_diffusion_3 import StableDiffusion3AutoBlocks
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LENGTH = 16
WIDTH = 32


def tokenizer() -> CLIPTokenizer:
    """Letters only: each is a token, at the end of a word or not."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=LENGTH)


def text_encoder(kind: type = CLIPTextModel, width: int = WIDTH) -> CLIPTextModel:
    tokens = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=LENGTH,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return kind(config).eval()


def vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **options,
    ).eval()


BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
}


def unet(channels: int = 4, **options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **(BLOCKS | options),
    ).eval()


def ddim(prediction_type: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def quiet(pipe, dtype: torch.dtype):
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype=dtype)


def seeded(build):
    def seeded(*args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return seeded


@seeded
def stable_diffusion(kind: type = StableDiffusionPipeline, dtype=torch.float32, prediction_type="epsilon", channels=4):
    extra = {}
    if kind is StableDiffusionControlNetPipeline:
        extra["controlnet"] = ControlNetModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 8),
            **BLOCKS,
        ).eval()
        for weight in extra["controlnet"].parameters():  # its last layers begin at zero
            torch.nn.init.normal_(weight, std=0.1)
    pipe = kind(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(channels),
        scheduler=ddim(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **extra,
    )
    return quiet(pipe, dtype)


@seeded
def sdxl(dtype=torch.float32):
    times = 8
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=times,
            projection_class_embeddings_input_dim=6 * times + WIDTH,
        ),
        scheduler=ddim(),
        add_watermarker=False,
    )
    return quiet(pipe, dtype)


@seeded
def stable_diffusion_3(dtype=torch.float32, scheduler=None, kind=StableDiffusion3Pipeline):
    """Without T5, whose tokens are zeros."""
    pipe = kind(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=12,
        ).eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return quiet(pipe, dtype)


@seeded
def unconditional(kind: type, scheduler, dtype=torch.float32):
    net = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return quiet(kind(net.eval(), scheduler), dtype)


IMG2IMG, INPAINT = StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
CONTROLNET = StableDiffusionControlNetPipeline


def modular():
    """Stable Diffusion 3 as a ModularPipeline."""
    pipe = StableDiffusion3AutoBlocks().init_pipeline()
    parts = stable_diffusion_3().components
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.components})
    pipe.set_progress_bar_config(disable=True)
    return pipe
