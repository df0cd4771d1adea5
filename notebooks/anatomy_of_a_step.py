# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Anatomy of a guided step
#
# The closed-form world knows its exact denoiser, so one can watch what Anti-Memorization Guidance does to a trajectory
# that would copy a training image.

# %%
import matplotlib.pyplot as plt
import torch

from amg import AntiMemorizationGuidance, sample
from amg.similarity import PCASimilarity
from amg.thresholds import Parabolic
from amg.worlds.closed_form import ClosedForm

model = ClosedForm()
bank = model.world().bank
similarity = PCASimilarity(bank)
prompts = ["the famous owl", "guitar sticker pack", "picture of a ghost", "cat"]
print({prompt: model.cause(prompt) for prompt in prompts})

# %% [markdown]
# Three prompts of planted pictures, one per cause, and an ordinary one, each sampled twice from the same noise. `watch`
# is the detection that the guidance acts by; it can be asked of unguided steps too. c1 is small here, so that G_spe
# leaves G_dup something to take back: s1 + s2 never exceeds s0 − 1.

# %%
seeds = [10, 1, 6, 3]
threshold = Parabolic(0.8, 0.6)
guidance = AntiMemorizationGuidance(similarity, threshold, c1=1, c2=20, c3=8, normalize=True)
watch = guidance.watch


def chain(guidance=None):
    """The pictures, (B, 3, H, W), and each step with what is detected at it."""
    seen: list = []
    pictures = sample(
        model,
        seeds,
        prompts=prompts,
        s0=3.0,
        guidance=guidance,
        on_step=lambda step, _: seen.append((step, watch(step))),
    )
    return pictures, seen


(plain, watched), (guided, seen) = chain(), chain(guidance)

# %% [markdown]
# ## σ_t and λ_t
#
# The similarity of x̂0 to its nearest training picture, step by step, from noise (t = 1) to the picture. AMG acts where
# it lies above the threshold, and nowhere else: dots are steps that were guided. All is decided early. This λ_t is
# set by hand and flags an ordinary trajectory too; a calibrated one (`task=calibrate`) seldom does.

# %%
UNGUIDED, GUIDED = "#c8553d", "#1f6f8b"
figure, axes = plt.subplots(1, len(prompts), figsize=(2.6 * len(prompts), 2.4), sharey=True)
t = torch.stack([step.t for step, _ in seen])
for row, (axis, prompt) in enumerate(zip(axes, prompts, strict=True)):
    for name, color, trace in (("without", UNGUIDED, watched), ("with AMG", GUIDED, seen)):
        sigma = torch.stack([sight.similarity for _, sight in trace])
        axis.plot(t[:, row], sigma[:, row], color=color, label=f"$\\sigma_t$ {name}")
    acted = torch.stack([sight.flagged for _, sight in seen])[:, row]
    axis.plot(t[acted, row], sigma[acted, row], "o", color=GUIDED, markersize=3, label="guided")
    axis.plot(t[:, row], threshold(t[:, row]), "--", color="#333333", linewidth=1, label="$\\lambda_t$")
    axis.set(title=f"{prompt}\n{model.cause(prompt)}", xlabel="t", xlim=(1, 0))
    axis.title.set_size(9)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=7)
figure.tight_layout()
curves = figure

# %% [markdown]
# ## One guided step, as pictures
#
# At a step where the planted trajectories are flagged: the noisy x_t, where it leads (x̂0), the training picture n0
# that this is nearest to, and the three changes of ε. Each has the shape of a picture; grey is 0, each is scaled to its
# own largest value, and its norm stands above. Last, where the trajectory leads after all three. The trajectories are
# the unguided ones: what would AMG do here?

# %%
planted = [row for row, prompt in enumerate(prompts) if model.cause(prompt) != "ordinary"]
step, sight = next(one for one in watched if one[0].t[0] < 0.93)
rows = [row for row in planted if sight.flagged[row]]


def change(*terms: str) -> torch.Tensor:
    """What these guidances together add to ε at this step, (B, C, H, W)."""
    some = AntiMemorizationGuidance(similarity, threshold, c1=1, c2=20, c3=8, normalize=True, terms=terms)
    return some(step, None)[0] - step.eps


# G_dup takes what G_spe leaves, so it is the difference of the two together and G_spe alone
terms = {"$G_{spe}$": change("spe"), "$G_{dup}$": change("spe", "dup") - change("spe"), "$G_{sim}$": change("sim")}
after = step.with_eps(step.eps + sum(terms.values())).x0


def scaled(term: torch.Tensor) -> torch.Tensor:
    """To [−1, 1] by the largest value of each sample; a term that is 0 stays so."""
    largest = term.abs().amax((1, 2, 3), keepdim=True)
    return term / torch.where(largest > 0, largest, 1)


columns = {
    "$x_t$": step.x_t / 2,
    r"$\hat x_0$": step.x0,
    "nearest $n_0$": bank.pictures[sight.index],
    **{name: scaled(term) for name, term in terms.items()},
    r"$\hat x_0$ after": after,
}
figure, axes = plt.subplots(len(rows), len(columns), figsize=(1.5 * len(columns), 1.75 * len(rows)), squeeze=False)
for line, row in zip(axes, rows, strict=True):
    for axis, (name, images) in zip(line, columns.items(), strict=True):
        axis.imshow((images[row].clamp(-1, 1) + 1).div(2).permute(1, 2, 0).cpu())
        head = [name] if row == rows[0] else []
        norm = [f"‖·‖ = {terms[name][row].norm():.1f}"] if name in terms else []
        axis.set_title("\n".join(head + norm), fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    line[0].set_ylabel(f"{prompts[row]}\n$\\sigma_t$ {sight.similarity[row]:.2f}", fontsize=8)
figure.suptitle(f"t = {float(step.t[0]):.2f}", x=0.02, ha="left", fontsize=9)
figure.tight_layout()

# %% [markdown]
# G_spe and G_dup show the picture that is about to be copied: added to ε, they take back from x̂0 what the prompt, and
# what the caption of n0, had put there. Where the trajectory has arrived (σ_t = 1) both are all but zero, since the
# prompt changes nothing any more; G_sim, which needs no prompt, is what is left.
#
# ## The truth
#
# Is a planted picture responsible for the sample?

# %%
copies = {
    name: model.copies(pictures.clamp(-1, 1)).tolist() for name, pictures in (("without", plain), ("with AMG", guided))
}
print(copies)
