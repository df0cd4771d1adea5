"""What the tests of `guard` share: pipelines by name, a guidance that finds every picture alike, and one call."""

import functools

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image
from tiny_pipelines import CONTROLNET, IMG2IMG, INPAINT, sdxl, stable_diffusion, stable_diffusion_3, unconditional
from tiny_transformers import flux, flux2, pixart, qwen_image, sana, z_image

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance
from amg.similarity import NormalizedL2
from amg.thresholds import Always

NAMES = ["one", "two", "six", "ten", "axe", "bee"]
PROMPTS = ["a cat", "two dogs", "sea"]
SEEDS = (4, 5, 6)
PICTURE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
MASK = Image.radial_gradient("L").resize((16, 16))

TEXT, SIZE = {"prompt": PROMPTS}, {"height": 16, "width": 16}
PIPELINES = {
    "sd": (stable_diffusion, TEXT),
    "sd v": (functools.partial(stable_diffusion, prediction_type="v_prediction"), TEXT),
    "sd rescaled": (stable_diffusion, TEXT | {"guidance_rescale": 0.7}),
    "sd without cfg": (stable_diffusion, TEXT | {"guidance_scale": 1.0}),
    "sd, two a prompt": (stable_diffusion, {"prompt": PROMPTS[:1], "num_images_per_prompt": 3}),
    "sdxl": (sdxl, TEXT | {"guidance_scale": 7.5}),
    "img2img": (functools.partial(stable_diffusion, IMG2IMG), TEXT | {"image": [PICTURE] * 3, "strength": 0.75}),
    "inpaint 4": (
        functools.partial(stable_diffusion, INPAINT),
        TEXT | {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16},
    ),
    "inpaint 9": (
        functools.partial(stable_diffusion, INPAINT, channels=9),
        TEXT | {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16},
    ),
    "controlnet": (functools.partial(stable_diffusion, CONTROLNET), TEXT | {"image": [PICTURE] * 3}),
    "sd3": (stable_diffusion_3, TEXT | {"guidance_scale": 7.5}),
    "sd3 without cfg": (stable_diffusion_3, TEXT | {"guidance_scale": 1.0}),
    "ddpm": (functools.partial(unconditional, DDPMPipeline, DDPMScheduler()), {"batch_size": 3}),
    "ddim": (functools.partial(unconditional, DDIMPipeline, DDIMScheduler()), {"batch_size": 3}),
}


SHORT = TEXT | {"max_sequence_length": 16}
NEGATIVE = {"negative_prompt": ["ugly"] * 3, "true_cfg_scale": 7.5}
PLAIN_SIZE, LARGER = {"use_resolution_binning": False}, {"height": 32, "width": 32}
TRANSFORMERS = {
    "flux without cfg": (flux, SHORT | SIZE),
    "flux": (flux, SHORT | SIZE | NEGATIVE),
    "flux2 klein": (flux2, SHORT | SIZE | {"guidance_scale": 7.5, "text_encoder_out_layers": (0, 1, 2)}),
    "qwen": (qwen_image, TEXT | SIZE | NEGATIVE),
    "pixart": (pixart, SHORT | PLAIN_SIZE | {"guidance_scale": 7.5, "clean_caption": False}),
    "sana": (
        sana,
        SHORT | PLAIN_SIZE | {"guidance_scale": 7.5, "complex_human_instruction": None, "height": 32, "width": 32},
    ),
    "z_image": (z_image, SHORT | SIZE | {"guidance_scale": 6.5}),
    "z_image without cfg": (z_image, SHORT | SIZE | {"guidance_scale": 0.0}),
}
PIPELINES |= TRANSFORMERS
FLOWS = ["sd3", "sd3 without cfg", *(name for name in TRANSFORMERS if name != "pixart")]


def bank(size: int | tuple[int, int] = 16) -> TrainingBank:
    generator = torch.Generator().manual_seed(0)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(6, 3, height, width, generator=generator) * 2 - 1
    return TrainingBank.from_tensors(images, NAMES)


def amg(threshold=None, size: int | tuple[int, int] = 16, **strengths) -> AntiMemorizationGuidance:
    strengths = strengths or {"c1": 2.0, "c2": 3.0, "c3": 5.0}
    nl2 = NormalizedL2(bank(size), k=3)

    def similarity(images):  # nL2 is negative, and these random pictures are all far: made positive, so that s1, s2 are
        match = nl2(images)
        return match._replace(value=3 + match.value)

    return AntiMemorizationGuidance(similarity, threshold or Always(), **strengths, captions=NAMES)


def call(pipe, options, seeds=SEEDS, steps=4):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = {"output_type": "latent"} if hasattr(pipe, "vae") else {"output_type": "pt"}
    return pipe(**options, generator=generators, num_inference_steps=steps, **latents).images


def size_of(name: str) -> int:
    return {"ddpm": 8, "ddim": 8, "sana": 32}.get(name, 16)


def in_squares(pipe, output: torch.Tensor) -> torch.Tensor:
    """What a scheduler is given as (B, C, h, w), by the pipeline's own functions where it packs."""
    if output.ndim == 4:
        return output
    if type(pipe).__name__.startswith("Flux2"):
        return output.transpose(1, 2).reshape(len(output), -1, 4, 4)
    return pipe._unpack_latents(output, 16, 16, pipe.vae_scale_factor).reshape(len(output), -1, 8, 8)


def has_cfg(name: str) -> bool:
    """Whether a pipeline makes two predictions, so that G_spe and G_dup act."""
    return not ("without" in name or name in ("ddpm", "ddim"))


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def remains(pipe) -> list:
    """What a guarded call could leave behind."""
    network = denoiser_of(pipe)
    weights = [w.requires_grad for part in (network, getattr(pipe, "vae", network)) for w in part.parameters()]
    hooks = len(network._forward_pre_hooks), len(network._forward_hooks)
    return [vars(pipe.scheduler).get("step"), hooks, weights]
