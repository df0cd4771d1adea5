# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Audit a fine-tune, guard it, audit it again
#
# Whoever fine-tunes a model on a few hundred images of their own is hurt most by copies. Here the fine-tune is the
# lab's network, and the folder is its training set, written to disk as yours would be: images with captions beside
# them.

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from torchvision.transforms.functional import to_pil_image

from amg import AntiMemorizationGuidance, TrainingBank, guard
from amg.guidance.presets import constants, threshold
from amg.similarity import PixelCorrelation
from amg.similarity.copies import find_copies
from amg.worlds.drawings import training_images
from amg.worlds.lab import LabDescriptor, lab_sd

pipe = lab_sd()  # yours, with its LoRA loaded
training = training_images()
folder = Path(mkdtemp())
for i, (image, captions) in enumerate(zip(training.images, training.captions, strict=True)):
    to_pil_image(image.add(1).mul(127.5).round().to(torch.uint8)).save(folder / f"{i:04d}.png")
    (folder / f"{i:04d}.txt").write_text(captions[0])

# %% [markdown]
# ## Audit
#
# Draw what the model is used for, and hold it against the folder. Two similarities are asked: the guide, which the
# guidance will follow, and a judge that it never sees. On the command line the same is one page:
#
# ```bash
# python run.py task=audit task.images=outputs/ data=folder data.path=train/ task.fail_above=0.01
# ```

# %%
bank = TrainingBank.from_folder(folder, cache=None)
guide, judge = PixelCorrelation(bank), LabDescriptor(bank, which="judge")
prompts = [captions[0] for captions, cause in zip(training.captions, training.causes, strict=True) if cause][:8]
call = {"guidance_scale": 4.0, "num_inference_steps": 50}


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]


plain = pipe(prompts, generator=seeded(), **call).images
before = find_copies(plain, bank, guide, judge=judge)
for prompt, one in zip(prompts, before, strict=True):
    print(f"{prompt}: {one.similarity:.3f} by the guide, {one.judge:.3f} by the judge{', a copy' if one.copy else ''}")

# %% [markdown]
# ## Guard
#
# AMG steers each trajectory away from what it comes too close to. What is a copy all the same is drawn again, and after
# three tries refused: a black image, and a report that says so.

# %%
chosen = constants("lab_sd", "correlation")
strengths = {name: getattr(chosen, name) for name in ("c1", "c2", "c3", "normalize", "margin")}
guidance = AntiMemorizationGuidance(guide, threshold("lab_sd", "correlation"), **strengths)
guarded = guard(pipe, guidance, on_copy="resample", tries=3, judge=judge)
images = guarded(prompts, generator=seeded(), **call).images
print(f"drawn again: {sum(one.tries for one in guarded.report)}, refused: {sum(one.refused for one in guarded.report)}")

# %% [markdown]
# ## Audit again
#
# None is left, by guide and judge, since the guard looked with the same eyes. What it cost stands above.

# %%
after = find_copies(images, bank, guide, judge=judge)
copies = {"without": [one.copy for one in before], "guarded": [one.copy for one in after]}
print({name: sum(flags) for name, flags in copies.items()})

rows = {"without": plain, "nearest": [to_pil_image(bank.pictures[one.nearest] / 2 + 0.5) for one in before]}
rows |= {"guarded": images}
figure, axes = plt.subplots(len(rows), len(prompts), figsize=(1.3 * len(prompts), 1.5 * len(rows)))
for line, (name, pictures) in zip(axes, rows.items(), strict=True):
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
figure.tight_layout()
