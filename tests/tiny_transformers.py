"""Real pipelines of diffusers with transformers and flows, at toy size and with random weights, built in memory."""

from __future__ import annotations

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipelines import LENGTH, WIDTH, quiet, seeded, text_encoder, tokenizer, vae
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)


def letters() -> PreTrainedTokenizerFast:
    """Each letter a token; a chat is its first message."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "</s>", *map(chr, range(32, 127))])}
    tokens = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=2 * LENGTH, **names)
    fast.chat_template = "{{ messages[0]['content'] }}"
    return fast


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
    ).eval()


def language_model(config: type, kind: type, layers: int = 2):
    """Gemma or Qwen."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return kind(config(vocab_size=128, max_position_embeddings=512, **sizes, **heads)).eval()


def euler(**options) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


SMALL = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}


@seeded
def flux(dtype=torch.float32, kind=diffusers.FluxPipeline, embedded=True):
    clip = {"text_encoder": text_encoder(), "tokenizer": tokenizer()}
    return quiet(
        kind(
            transformer=diffusers.FluxTransformer2DModel(
                in_channels=16,
                num_single_layers=1,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=embedded,
                axes_dims_rope=(4, 2, 2),
                **SMALL,
            ).eval(),
            scheduler=euler(),
            vae=vae(shift_factor=0.1),
            text_encoder_2=t5(),
            tokenizer_2=letters(),
            **clip,
        ),
        dtype,
    )


@seeded
def flux2(dtype=torch.float32, kind=diffusers.Flux2KleinPipeline, layers=2):
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    return quiet(
        kind(
            transformer=diffusers.Flux2Transformer2DModel(
                in_channels=16,
                num_single_layers=1,
                joint_attention_dim=3 * WIDTH,
                timestep_guidance_channels=16,
                axes_dims_rope=(2, 2, 2, 2),
                guidance_embeds=kind is diffusers.Flux2Pipeline,
                **SMALL,
            ).eval(),
            scheduler=euler(),
            vae=autoencoder.eval(),
            text_encoder=language_model(Qwen3Config, Qwen3Model, layers),
            tokenizer=letters(),
        ),
        dtype,
    )


@seeded
def qwen_image(dtype=torch.float32):
    return quiet(
        diffusers.QwenImagePipeline(
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=16, out_channels=4, joint_attention_dim=WIDTH, axes_dims_rope=(4, 2, 2), **SMALL
            ).eval(),
            scheduler=euler(),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.1, 0.2, -0.1, 0.3],
                latents_std=[1.5, 0.7, 1.1, 0.9],
            ).eval(),
            text_encoder=language_model(Qwen3Config, Qwen3Model),
            tokenizer=letters(),
        ),
        dtype,
    )


@seeded
def pixart(dtype=torch.float32):
    return quiet(
        diffusers.PixArtSigmaPipeline(
            transformer=diffusers.PixArtTransformer2DModel(
                in_channels=4,
                cross_attention_dim=16,
                sample_size=8,
                caption_channels=WIDTH,
                use_additional_conditions=False,
                **SMALL,
            ).eval(),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
            vae=vae(),
            text_encoder=t5(),
            tokenizer=letters(),
        ),
        dtype,
    )


@seeded
def sana(dtype=torch.float32):
    dtype = torch.float32 if dtype == torch.float64 else dtype  # of float64 its attention makes NaN
    return quiet(
        diffusers.SanaPipeline(
            transformer=diffusers.SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=WIDTH,
                sample_size=8,
                **SMALL,
            ).eval(),
            scheduler=diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            vae=diffusers.AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), ()),
                decoder_qkv_multiscales=((), (), ()),
                scaling_factor=0.4,
            ).eval(),
            text_encoder=language_model(Gemma2Config, Gemma2Model),
            tokenizer=letters(),
        ),
        dtype,
    )


@seeded
def z_image(dtype=torch.float32):
    return quiet(
        diffusers.ZImagePipeline(
            transformer=diffusers.ZImageTransformer2DModel(
                in_channels=4,
                dim=16,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=WIDTH,
                axes_dims=[4, 2, 2],
                axes_lens=[64, 32, 32],
            ).eval(),
            scheduler=euler(),
            vae=vae(shift_factor=0.1),
            text_encoder=language_model(Qwen3Config, Qwen3Model),
            tokenizer=letters(),
        ),
        dtype,
    )
