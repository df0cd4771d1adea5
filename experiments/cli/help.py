"""The page that `--help` prints."""

from __future__ import annotations

from pathlib import Path

PAGE = """\
Memorization-free diffusion: sample a diffusion model without copying its training images.

  python run.py                                        the demo: images, table, curves, report
  python run.py guidance=full prompt="owl"            one prompt, guarded
  python run.py guidance=full n_samples=256 seed=1000  the model's default prompts; seeds 1000 to 1255
  python run.py guidance=gni_full                      a chain: embeddings noised, then AMG
  python run.py conditioning=none similarity=nl2 guidance=sim     unconditional
  python run.py conditioning=label "labels=[3]"        one class
  python run.py -m guidance=none,full s0=1,3,7.5       a sweep; the same command resumes
  python run.py -m 'guidance=glob(*)'                  every guidance; n/a where a model cannot
  python run.py experiment=table4                      a table of the paper
  python run.py -m guidance=none,full 'seed=range(0,5000,1000)' n_samples=1000    mean ± 95 % interval over seeds
  python run.py task=collect 'task.runs=[runs/table4/*]'          finished runs in one table
  python run.py -m hydra/launcher=parallel hydra.launcher.n_jobs=4 …    jobs side by side; slurm: on a cluster
  python run.py -cd FOLDER guidance=mine               with yamls of your own beside conf/
  python run.py task=detect                            what finds planted prompts; detector=[magnitude,norms]
  python run.py -m task=detect detector=nearest,magnitude …    a sweep of it: one table of detectors and settings
  python run.py task=bank data=folder data.path=train  reads and embeds one's own images, once

The same command again resumes and recomputes nothing.
Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted, 143 terminated.

Choices (group=choice)
{groups}

Keys (key=value; model.…, guidance.…, similarity.… reach into a choice)
  seed=0            sample i draws from seed + i alone
  n_samples=16      over all prompts together; sample i takes prompt i mod their number; null: each prompt once
  batch_size=64     changes nothing but speed and memory
  s0=…              CFG scale (Eq. 7)
  conditioning=     none | label | prompt; the model sets it
  prompt=           free text; prompts= a .txt, .jsonl or .csv file, or planted | ordinary; labels=[0,3]
  sampler.steps=    network calls per sample; sampler.eta= for DDIM
  guidance.c1= c2= c3=   strengths (Eqs. 13, 15, 17); strength=main|strong sets them
  output_dir=       default runs/<name>/<model>-<guidance>-<hash of what decides an image>

  python run.py --cfg job      prints the composed configuration
"""


def page(folders: list[Path]) -> str:
    """The page, with the choices of these configuration folders."""
    choices: dict[str, list[str]] = {}
    for file in (file for folder in folders for file in folder.rglob("*.yaml")):
        parts = next(file.relative_to(folder).with_suffix("").parts for folder in folders if folder in file.parents)
        if len(parts) > 1:
            depth = 2 if parts[0] == "hydra" else 1
            choices.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
    lines = [line for group in sorted(choices) for line in _wrap(f"  {group:<14} ", "  ".join(sorted(choices[group])))]
    return PAGE.format(groups="\n".join(lines))


def _wrap(label: str, text: str, width: int = 100) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, initial_indent=label, subsequent_indent=" " * len(label))
