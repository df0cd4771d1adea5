# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Add your own guidance
#
# A guidance is a class with settings and a call: it sees a step, returns the noise prediction to use and its state.
# Here one that weakens classifier-free guidance early in the trajectory, where a copy is decided: s(t) = s0 − strength
# · (s0 − 1) · t.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from amg import sample
from amg.worlds.closed_form import ClosedForm

SOURCE = '''
from amg.guidance import Guidance


class EarlyRelief(Guidance):
    """CFG scale s0 − strength (s0 − 1) t: plain conditional sampling at first, the usual scale at the end.

    Args:
        strength: in [0, 1]; 0 is plain CFG.
    """

    needs_cfg = True

    def __init__(self, strength: float = 1.0):
        if not 0 <= strength <= 1:
            raise ValueError(f"guidance.strength must lie in [0, 1], got {strength}")
        self.strength = strength

    def __call__(self, step, state):
        if self.strength == 0 or step.eps_cond is None:
            return step.eps, state
        scale = (self.strength * (step.s0 - 1) * step.t).to(step.eps).view(-1, 1, 1, 1)
        return step.eps - scale * (step.eps_cond - step.eps_uncond), state
'''
folder = Path(tempfile.mkdtemp())
(folder / "early_relief.py").write_text(SOURCE)
sys.path.insert(0, str(folder))

# %% [markdown]
# Two laws hold for every guidance: at strength 0 it is plain sampling, bit by bit, and a sample depends on its seed
# alone, not on its batch (but for float rounding).

# %%
from early_relief import EarlyRelief  # noqa: E402

model = ClosedForm(dtype=torch.float64)
prompts = model.world().prompts[::2][:18]  # captions of planted pictures
seeds = list(range(len(prompts)))

few = {"steps": 5, "s0": 3.0}
plain = sample(model, seeds[:4], prompts=prompts[:4], **few)
assert torch.equal(plain, sample(model, seeds[:4], prompts=prompts[:4], guidance=EarlyRelief(strength=0.0), **few))

guided = sample(model, seeds[:4], prompts=prompts[:4], guidance=EarlyRelief(), **few)
alone = sample(model, seeds[2:3], prompts=prompts[2:3], guidance=EarlyRelief(), **few)
assert torch.allclose(alone[0], guided[2], atol=1e-6) and not torch.equal(guided, plain)

# %% [markdown]
# Does it help? The truth about each sample:

# %%
plain = sample(model, seeds, prompts=prompts, s0=3.0)
guided = sample(model, seeds, prompts=prompts, s0=3.0, guidance=EarlyRelief())
copies = {
    name: model.copies(pictures.clamp(-1, 1)).tolist()
    for name, pictures in (("without", plain), ("with early relief", guided))
}
print({name: sum(found) for name, found in copies.items()}, "of", len(seeds))

# %% [markdown]
# In the experiments a guidance is chosen by a yaml: a name, the class, and what differs from its defaults. Yamls of
# one's own lie in a folder beside `conf/`, which `-cd` names; `allow` lets the run build classes from outside this
# project.

# %%
YAML = """
# Weaker CFG early in the trajectory; strength 0 is plain.
name: early_relief
_target_: early_relief.EarlyRelief
strength: 0.8
"""
(folder / "guidance").mkdir()
(folder / "guidance" / "early_relief.yaml").write_text(YAML)

root = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "run.py").is_file())
run = [sys.executable, str(root / "run.py"), "-cd", str(folder), "allow=[early_relief.]", "guidance=early_relief"]
small = ["n_samples=4", "sampler.steps=10", "metrics.extractor=none", "metrics.scorer=none", "trainer=cpu"]
environment = {**os.environ, "PYTHONPATH": str(folder)}
done = subprocess.run([*run, *small], cwd=folder, env=environment, capture_output=True, text=True)
assert done.returncode == 0, done.stderr
print(done.stdout)

# %% [markdown]
# A key of the class is a key of the command (`guidance.strength=0.5`), and a typo is told before anything is loaded.
# In the project itself the class is a file of `amg/guidance/`, the yaml one of `conf/guidance/`, and `-cd` and
# `allow` are not needed. Beside the others, in one table:
#
# ```bash
# PYTHONPATH=my_code python run.py -m -cd my_yamls 'allow=[early_relief.]' guidance=none,early_relief,full n_samples=144
# ```
