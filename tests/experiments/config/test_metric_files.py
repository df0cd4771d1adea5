"""What the metrics need beside the samples is looked for before any is drawn."""

import json

import numpy as np
import pytest
from PIL import Image

SMALL = ["n_samples=3", "sampler.steps=1", "trainer=cpu", "output_dir=out", "metrics.scorer=none"]


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures of several sizes, none of them the model's."""
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(40, 30), (30, 40), (64, 64), (20, 50)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["metrics.reference=/nope"], "metrics.reference=/nope: there is no folder /nope"),
        (["metrics.reference=empty"], "metrics.reference=empty: no images in empty"),
        (["metrics.extractor=foo"], "metrics.extractor=foo: choose efficientnet_lite0, inception or none"),
        (["metrics.extractor=inception"], "metrics.extractor=inception: Inception weights are missing: put"),
        (["metrics.scorer=/nope"], "metrics.scorer=/nope: no such folder; lab, clip,"),
        (["metrics.scorer=empty"], "metrics.scorer=empty: that folder holds no CLIP"),
    ],
)
def test_what_is_missing_is_told_by_its_key_before_anything_is_drawn(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr("amg.metrics.extractors.INCEPTION_FOLDER", tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, told = command(*SMALL, *arguments)
    assert code == 2 and told.startswith(f"error: {said}") and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_told_at_once_also_of_the_model(command):
    code, _, told = command(*SMALL, "model=iddpm_cifar10", "metrics.reference=/nope", "metrics.extractor=foo")
    assert code == 2
    keys = [line.removeprefix("error: ").split("=")[0].split(":")[0] for line in told.splitlines()]
    assert [key for key in keys if key.startswith("metrics")] == ["metrics.extractor", "metrics.reference"]
    assert keys[0] == "model.path"


@pytest.mark.parametrize("model", ["closed_form", "lab_ddpm"])
def test_photos_of_any_size_are_compared_at_the_models_own(command, tmp_path, photos, monkeypatch, model):
    from experiments.run import measure

    seen = []
    evaluate = measure.evaluate
    monkeypatch.setattr(
        measure, "evaluate", lambda *given, **keys: seen.append(given[5][:].shape) or evaluate(*given, **keys)
    )
    code, _, told = command(*SMALL, f"model={model}", "conditioning=none", "metrics.reference=photos")
    assert code == 0, told
    assert seen == [(4, 3, 32, 32)]
    metrics = json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"]
    assert metrics["fid"] > 0 and metrics["fid_setting"]["reference"] == "photos (4 images)"


def test_pictures_that_cannot_be_read_are_told_by_the_key(command, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    code, _, told = command(*SMALL, "metrics.reference=photos")
    assert code == 2 and "error: metrics.reference=photos: photos: none of 1 images can be read" in told


def test_a_name_of_the_hub_is_no_path(command, tmp_path):
    code, _, told = command(*SMALL, "metrics.extractor=none", "metrics.scorer=nobody/nothing", "prompt=owl")
    assert code == 0, told
    assert "hf download nobody/nothing" in json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"][
        "alignment_missing"
    ]  # fmt: skip
