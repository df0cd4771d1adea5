"""`task=bank` and `task=dedupe`: what they tell, what they leave on disk, and that nothing is computed twice."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amg import TrainingBank
from amg.worlds.drawings import training_images
from amg.worlds.lab import LabDescriptor
from experiments.cli.main import main
from experiments.config import build
from experiments.tasks import bank as task

PICTURES = Path(__file__).parents[2] / "data" / "cifar10_200.parquet"
CHOICE = ["trainer=cpu", "data=folder", "data.path=train", "data.cache=vectors"]
LAB = ["model=lab_sd", "similarity=lab_guide", *CHOICE]


@pytest.fixture(autouse=True)
def _below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMG_CACHE", str(tmp_path / "own"))


@pytest.fixture
def train():
    """300 pictures with captions, one of them twice, and a corrupt one."""
    folder = Path("train")
    folder.mkdir()
    for i, image in enumerate([*training_images(32).images[:300], training_images(32).images[0]]):
        Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_pictures_are_counted_embedded_once_and_found_by_later_runs(train, capsys):
    assert main(["task=bank", *LAB]) == 0
    told = capsys.readouterr().out
    assert "302 images of train, 300 distinct, 1 repeats, 301 with a caption" in told
    assert "left out, 1 that cannot be read:\n  broken.png (UnidentifiedImageError)" in told
    assert re.search(
        r"similarity=lab_guide: 300 vectors of 128 numbers in vectors/vectors/lab_guide.*; 300 computed", told
    )
    assert re.search(
        r"judge=lab_judge: 300 vectors of 192 numbers in vectors/vectors/lab_judge.*; 300 computed now", told
    )
    made = {file: file.stat().st_mtime_ns for file in Path("vectors").rglob("*.npy")}

    assert main(["task=bank", *LAB]) == 0
    assert capsys.readouterr().out.count("; 0 computed now") == 2
    assert main([*LAB, "n_samples=2", "sampler.steps=2", "metrics.extractor=none", "output_dir=out"]) == 0
    assert {file: file.stat().st_mtime_ns for file in Path("vectors").rglob("*.npy")} == made

    with pytest.warns(UserWarning):
        bank = TrainingBank.from_folder(train, cache=None)
    (file,) = Path("vectors").rglob("lab_guide*/vectors.npy")
    expected = LabDescriptor(bank).descriptors(bank.pictures[:])
    torch.testing.assert_close(torch.from_numpy(np.load(file)).float(), expected, atol=2e-3, rtol=0)


def test_every_task_notes_what_is_left_out_and_what_has_no_caption(train, capsys):
    (train / "007.txt").unlink()
    note = "note: train: 1 of 302 images cannot be read and are left out: broken.png (UnidentifiedImageError); 1 of 301"
    build._world.cache_clear()
    for command in (["task=dedupe", "data=folder", "data.path=train"], [*LAB, "n_samples=1", "sampler.steps=1"]):
        assert main([*command, "metrics.extractor=none"] if command[0] != "task=dedupe" else command) == 0
        assert capsys.readouterr().err.count(note) == 1
    assert main(["task=bank", *LAB]) == 0
    assert "1 of 301 images have no caption (captions are .txt," in capsys.readouterr().out


def test_a_lost_block_alone_is_computed_again(train, capsys, monkeypatch):
    monkeypatch.setattr("amg.bank.vectors.BLOCK", 256)
    assert main(["task=bank", *LAB]) == 0
    (file,) = Path("vectors").rglob("lab_guide*/vectors.done")
    file.write_bytes(b"\1\0")
    assert main(["task=bank", *LAB, "trainer.devices=2"]) == 0  # of which one has nothing to do
    assert re.findall(r"; (\d+) computed now", capsys.readouterr().out) == ["300", "300", "44", "0"]


def test_pictures_that_changed_are_refused_before_anything_is_computed(train, capsys):
    assert main(["task=bank", *LAB]) == 0
    (train / "007.png").unlink()
    capsys.readouterr()
    build._world.cache_clear()
    for command in (["task=bank", *LAB], [*LAB, "n_samples=2", "output_dir=out"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert line == "error: data.path: train is not what it was: build the bank in another folder"


def test_the_downloaded_pictures_are_embedded_once_too_and_the_broken_ones_listed(capsys):
    folder = Path("data/memorized_laion")
    folder.mkdir(parents=True)
    for i, image in enumerate(training_images(32).images[:3]):
        file = folder / f"{i}.png"
        Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(file)
        if i == 2:
            file.write_bytes(file.read_bytes()[:60])
    asking = ["task=bank", *LAB[:3], "data=memorized_laion", "data.size=32"]
    assert main(asking) == 0
    told = capsys.readouterr().out
    assert "3 images of data/memorized_laion, 2 distinct" in told
    assert "left out, 1 that cannot be read:\n  2.png (OSError)" in told
    assert re.search(
        r"similarity=lab_guide: 2 vectors .* in .*own/banks/\w+/vectors/lab_guide-none-\w+; 2 computed now", told
    )
    assert main(asking) == 0
    assert capsys.readouterr().out.count("; 0 computed now") == 2


def test_without_a_descriptor_the_pictures_are_counted_all_the_same(train, capsys):
    assert main(["task=bank", *CHOICE, "data.size=16"]) == 0
    told = capsys.readouterr().out
    assert "300 distinct" in told
    assert "similarity=pca: compares pixels" in told and "judge=nl2: compares pixels, nothing to embed" in told
    assert not Path("vectors/vectors").exists()


def test_the_models_own_pictures_stay_in_memory(capsys):
    assert main(["task=bank", "trainer=cpu", "model=lab_sd", "similarity=lab_guide"]) == 0
    told = capsys.readouterr().out
    assert "1,532 distinct" in told and "similarity=lab_guide: this data is embedded in memory at each start" in told


def test_only_the_first_process_tells(train, capsys, monkeypatch):
    monkeypatch.setattr(task.Bank, "_embed", lambda *_: "done")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["task=bank", *LAB]) == 0
    assert capsys.readouterr().out == ""


DEDUPE = ["task=dedupe", "data=cifar10", f"data.path={PICTURES}", "task.k=20"]


def test_near_copies_are_counted_once_and_the_answer_is_kept(capsys):
    assert main(DEDUPE) == 0
    told = capsys.readouterr().out
    assert "200 images, 200 distinct, 10 near-copies left out (nL2 below 1, k=20, α=0.5), 190 to refer to" in told
    (file,) = Path("own").glob("dedupe-*.npy")
    before = file.stat().st_mtime_ns
    assert len(np.load(file)) == 190
    assert main(DEDUPE) == 0 and file.stat().st_mtime_ns == before
    assert "10 near-copies" in capsys.readouterr().out


def test_runs_with_deduplicate_read_the_answer(monkeypatch, capsys):
    data = ["data=parquet", f"data.path={PICTURES}"]
    assert main(["task=dedupe", *data]) == 0
    gone = int(re.search(r"(\d+) near-copies", capsys.readouterr().out)[1])
    monkeypatch.setattr("amg.bank.dedupe.kept_pictures", lambda *_, **__: pytest.fail("searched again"))
    assert gone > 0 and len(TrainingBank.from_folder(PICTURES, deduplicate=1.0)) == 200 - gone
    assert main(["task=dedupe", *data, "data.deduplicate=1.0"]) == 0  # counts over all of the pictures again
    assert f"200 distinct, {gone} near-copies" in capsys.readouterr().out


@pytest.mark.parametrize("key, said", [("task.k=200", "more than k=200"), ("task.treshold=2", "did you mean thresh")])
def test_what_cannot_be_deduplicated_is_told_in_a_line(capsys, key, said):
    assert main([*DEDUPE[:3], key]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: task") and said in line
