# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Anatomy of a guided step
#
# The closed-form world knows its exact denoiser, so one can watch what Anti-Memorization Guidance does to a chain that
# would copy a training picture. Open this file as a notebook with jupytext, or run it as a script.

# %%
import torch

from amg import AntiMemorizationGuidance, sample
from amg.models.closed_form import ClosedForm
from amg.similarity import PCASimilarity
from amg.thresholds import Parabolic

model = ClosedForm()
bank = model.bank()
similarity = PCASimilarity(bank)
prompts = ["telephone receiver", "bus", "trade mark", "toolbox"]
print({prompt: model.cause(prompt) for prompt in prompts})

# %% [markdown]
# Without guidance: the similarity σ_t of x̂0 to its nearest training picture, at every fifth step.

# %%
seeds = [20, 23, 64, 52]
watch = AntiMemorizationGuidance(similarity, Parabolic(0.8, 0.6), terms=())
trace: list = []
plain = sample(model, seeds, prompts=prompts, s0=3.0, guidance=watch, on_step=lambda step, state: trace.append(state))
print(torch.stack([state.similarity for state in trace])[::5])

# %% [markdown]
# With all three guidances. `flagged` says which samples were touched, the norms how strong each guidance was.

# %%
guidance = AntiMemorizationGuidance(similarity, Parabolic(0.8, 0.6), c1=13, c2=20, c3=8, normalize=True)
guided_trace: list = []
guided = sample(
    model, seeds, prompts=prompts, s0=3.0, guidance=guidance, on_step=lambda step, state: guided_trace.append(state)
)
print(torch.stack([state.similarity for state in guided_trace])[::5])
print("steps guided", torch.stack([state.flagged for state in guided_trace]).sum(0).tolist())

# %% [markdown]
# The truth: is a planted picture responsible for the sample?

# %%
copies = {
    name: model.is_copy(model.responsible(pictures.clamp(-1, 1))).tolist()
    for name, pictures in (("without", plain), ("with AMG", guided))
}
print(copies)
