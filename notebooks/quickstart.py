# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Quickstart: guard a pipeline
#
# A pipeline of diffusers, a bank of its training images, and a guidance that keeps the first from copying the
# second. The network is the lab's own: a latent diffusion model of 32×32 drawings that memorized 32 planted ones.
# With Stable Diffusion the pipeline, the bank and the preset are others.

# %%
import matplotlib.pyplot as plt
import torch

from amg import AntiMemorizationGuidance, guard
from amg.guidance.presets import constants, threshold
from amg.similarity import PixelCorrelation
from amg.worlds.drawings import training_images
from amg.worlds.lab import LabDescriptor, lab_sd

pipe = lab_sd()  # StableDiffusionPipeline.from_pretrained(…)
training = training_images()
bank = training.bank()  # TrainingBank.from_folder(…)

# %% [markdown]
# Three captions that the network memorized, one per cause. The pipeline as it comes, one generator per image:

# %%
planted = [(caption, cause) for (caption, *_), cause in zip(training.captions, training.causes, strict=True) if cause]
prompts = list({cause: caption for caption, cause in reversed(planted)}.values())
call = {"guidance_scale": 4.0, "num_inference_steps": 50, "output_type": "pt"}


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]


plain = pipe(prompts, generator=seeded(), **call).images * 2 - 1

# %% [markdown]
# The same call, guarded. The similarity measures how alike x̂0 and its nearest training image are. A sample is guided
# where it exceeds the threshold λ_t, which was learned on ordinary samples; c1, c2 and c3 are the strengths (Eqs. 13,
# 15, 17) that were tuned for this network. For Stable Diffusion `AntiMemorizationGuidance.preset("sd-main", bank)` has
# them all.

# %%
chosen = constants("lab_sd", "correlation")
strengths = {name: getattr(chosen, name) for name in ("c1", "c2", "c3", "normalize", "margin")}
guidance = AntiMemorizationGuidance(PixelCorrelation(bank), threshold("lab_sd", "correlation"), **strengths)
guarded = guard(pipe, guidance)(prompts, generator=seeded(), **call).images * 2 - 1

# %% [markdown]
# Whether an image is a copy is not for the guide to say, which was optimized against: a judge that gave no gradient
# counts. And look: a guide that is a network can be fooled, so that its numbers fall and the copy stays to be seen.
# That is why the guide here is the correlation of pixels. How many copies are left of hundreds of samples is in the
# network's model card, `amg/worlds/weights/lab_sd/MODEL_CARD.md`.

# %%
judge = LabDescriptor(bank, which="judge")
found = {"without": judge(plain), "with AMG": judge(guarded)}
copies = {name: (match.value > judge.copy).tolist() for name, match in found.items()}
print({name: [round(value, 3) for value in match.value.tolist()] for name, match in found.items()})
print(copies)

# %%
rows = {"without": plain, "with AMG": guarded, "nearest": bank.pictures[found["without"].index]}
figure, axes = plt.subplots(len(rows), len(prompts), figsize=(2 * len(prompts), 2 * len(rows)), squeeze=False)
for line, (name, images) in zip(axes, rows.items(), strict=True):
    for axis, image, prompt in zip(line, images, prompts, strict=True):
        axis.imshow((image.clamp(-1, 1) + 1).div(2).permute(1, 2, 0).cpu())
        axis.set_title(f"{name}\n{prompt}" if name == "without" else name, fontsize=8)
        axis.axis("off")
figure.tight_layout()
