"""Transformers and flows as `model=` of a run: sampled by their own pipelines, guided, copies drawn again."""

import functools
import json

import pytest
import torch
from tiny_pipelines import stable_diffusion_3
from tiny_transformers import flux, flux2, pixart, qwen_image, sana, z_image
from torchvision.transforms.functional import to_pil_image

from experiments.run import records

SHORT = ["model.max_sequence_length=16"]
MODELS = {
    "sd3": (stable_diffusion_3, SHORT),
    "flux": (flux, SHORT),
    "flux2": (functools.partial(flux2, layers=28), SHORT),  # its pipeline reads the hidden layers 9, 18 and 27
    "qwen_image": (qwen_image, []),
    "pixart": (pixart, SHORT),
    "sana": (sana, SHORT),
    "z_image": (z_image, SHORT),
}


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "flux" else pytest.mark.slow) for name in MODELS]
)
def test_a_folder_of_todays_models_runs_as_it_stands(command, tmp_path, name, flagged):
    build, options = MODELS[name]
    build().save_pretrained(tmp_path / "pipe")
    size = 32 if name == "sana" else 16
    (tmp_path / "train").mkdir()
    for i in range(4):
        image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(i))
        to_pil_image(image).save(tmp_path / "train" / f"{i}.png")
        (tmp_path / "train" / f"{i}.txt").write_text(f"caption {i}")
    code, _, err = command(
        *(f"model={name}", "model.source=pipe", "model.dtype=float32", f"model.size={size}", *options),
        *("data.path=train", f"data.size={size}", "similarity=nl2", "similarity@judge=pca", "judge.directions=3"),
        *("threshold=constant", f"threshold.value={-9 if flagged else 9}", "guidance=sim", "guidance.c1=0"),
        *("guidance.c2=0", "guidance.c3=1", "prompt=a cat", "n_samples=2", "sampler.steps=2"),
        *("metrics.extractor=none", "metrics.scorer=none"),
        *("trainer=cpu", "output_dir=out", "on_copy=refuse"),
    )
    assert code == 0, err
    rows = records.read(tmp_path / "out")
    assert (rows.steps_guided == (2 if flagged else 0)).all() and rows.refused.notna().all()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"]["copies"] == {"count": 0, "n": 2}
