"""`task=search` and `task=duplicates`: what they print, show and leave."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from amg.worlds.drawings import training_images

ROOT = Path(__file__).parents[3]
LAB = ["trainer=cpu", "similarity=lab_guide", "data=bank", "data.path=mine"]


@pytest.fixture
def bank(tmp_path, command):
    """60 pictures, two of them nearly the same, in a bank on disk."""
    folder = tmp_path / "train"
    folder.mkdir()
    for i, image in enumerate(training_images(32).images[:60]):
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
        if i == 7:
            Image.fromarray(pixels).save(folder / "900.jpg", quality=97)
            (folder / "900.txt").write_text("picture 7")
    code, out, err = command("task=bank", "task.out=mine", "data=folder", "data.path=train", "trainer=cpu", *LAB[1:2])
    assert code == 0, err
    assert "61 images of train, 61 distinct, 0 repeats, 61 with a caption" in out
    return folder


def test_a_picture_finds_itself_and_the_page_shows_it(bank, command):
    code, out, err = command("task=search", *LAB, "task.query=train/007.png", "task.k=3")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert [line[1] for line in lines[:2]] == ["007.png", "900.jpg"] and float(lines[0][0]) > 0.999 and len(lines) == 3
    page = Path("runs/search/report.html").read_text()
    assert page.count("<img") == 4 and "picture 7" in page
    code, _, err = command("task=search", *LAB, "task.query=none.png")
    assert code == 2 and err.strip() == "error: task.query: there is no folder none.png"


def test_near_copies_are_grouped_and_one_of_each_is_kept(bank, command):
    code, out, err = command("task=duplicates", *LAB, "task.above=0.995")
    assert code == 0, err
    table = pd.read_parquet("runs/duplicates/duplicates.parquet")
    (group,) = table[table.key == "007.png"].cluster
    group = table[table.cluster == group]
    assert "900.jpg" in set(group.key) and set(group.captions.str[0]) == {"picture 7"}
    kept = Path("runs/duplicates/keep.txt").read_text().split()
    assert "007.png" in kept and "900.jpg" not in kept and len(kept) == 61 - (len(table) - table.cluster.nunique())
    assert (
        "all share one caption: prompts that hold it will copy them" in Path("runs/duplicates/report.html").read_text()
    )
    code, _, err = command("task=duplicates", *LAB[:1], "similarity=nl2", "similarity@judge=nl2", *LAB[2:])
    assert code == 2 and "near-copies are found by a descriptor" in err


def test_steps_and_parts_do_what_they_say(bank, command, monkeypatch):
    monkeypatch.setattr("amg.bank.vectors.BLOCK", 8)
    own = ["task=bank", "trainer=cpu", "similarity=lab_judge", "data=bank", "data.path=mine"]
    two = [command(*own, "task.step=vectors", "task.parts=2", f"task.part={part}")[1] for part in (0, 1)]
    assert "; 32 computed now" in two[0] and "; 29 computed now" in two[1]
    assert "similarity=lab_judge: 61 vectors of 192 numbers" in two[1]
    (bank / "003.png").write_bytes((bank / "004.png").read_bytes())
    _, out, _ = command(*own, "task.step=check")
    assert "check: 61 images read again, 1 are gone or changed since the bank was built\n  003.png" in out
    code, _, err = command(*own, "task.step=all", "task.part=2", "task.engine=spark")
    assert code == 2 and [line.split(":")[1].strip() for line in err.strip().splitlines()] == [
        "task.step=all", "task.part=2", "task.engine=spark",
    ]  # fmt: skip


@pytest.mark.slow
def test_ray_writes_the_vectors_that_lightning_does(bank, command, monkeypatch):
    import numpy as np
    import ray

    (file,) = Path("mine/vectors").glob("lab_guide*/vectors.npy")
    expected = np.array(np.load(file), np.float32)
    file.with_suffix(".done").write_bytes(bytes(file.with_suffix(".done").stat().st_size))
    file.write_bytes(file.read_bytes()[:4096] + bytes(file.stat().st_size - 4096))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    try:
        code, out, err = command("task=bank", *LAB, "task.engine=ray")
    finally:
        ray.shutdown()
    assert code == 0, err
    assert "similarity=lab_guide: 61 vectors of 128 numbers" in out and "; 61 computed now" in out
    np.testing.assert_allclose(np.load(file).astype(np.float32), expected, atol=2e-3)


@pytest.mark.slow
def test_a_bank_that_was_killed_shared_or_made_in_parts_is_the_same():
    script = [sys.executable, "-m", "benchmarks.kill_bank", "--moments", "3", "--images", "200"]
    done = subprocess.run(script, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same") == 3 + 2  # and two at once, and two parts
