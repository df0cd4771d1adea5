# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Reproduce a table
#
# Table 4 asks which of the three guidances are needed. A table is data (`conf/experiment/table4.yaml`: rows, columns,
# the paper's numbers), a row is a run, and one command draws what is missing, measures and prints. Here with few
# samples and steps, in the closed-form world, into a folder of its own.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "run.py").is_file())
folder = Path(tempfile.mkdtemp())
small = ["n_samples=24", "sampler.steps=20", "metrics.extractor=none", "metrics.scorer=none", "trainer=cpu"]
command = [sys.executable, str(root / "run.py"), "experiment=table4", *small]
done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
assert done.returncode == 0, done.stderr

# %% [markdown]
# The table, as the command leaves it in Markdown, CSV and LaTeX, with Wilson's 95 % intervals. With 24 samples they
# are wide: that is the honest answer to a small run. Without an extractor there is no FID.

# %%
print((folder / "runs" / "table4" / "table-1" / "table.md").read_text())

# %% [markdown]
# Each row is a folder with one record per sample. The truth, known in this world alone: is a planted picture
# responsible for the sample?

# %%
runs = {json.loads(file.read_text())["guidance"]: file.parent for file in folder.glob("runs/table4/*/manifest.json")}
records = {name: pd.read_parquet(run_dir / "records").sort_values("seed") for name, run_dir in runs.items()}
copies = {"without": records["none"]["truth"].tolist(), "with AMG": records["full"]["truth"].tolist()}
print({name: int(frame["truth"].sum()) for name, frame in records.items()})

# %% [markdown]
# At full size, in the closed-form world, then as in the paper (with its weights and training pictures on disk):
#
# ```bash
# python run.py experiment=table4
# python run.py experiment=table4 model=sd
# ```
#
# The same command again resumes; `n_samples=1000` after `n_samples=504` draws the 496 that are missing.
