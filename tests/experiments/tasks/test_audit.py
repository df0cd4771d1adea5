"""task=audit: images of any tool against a training folder, one command to one page."""

import csv
import io

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from amg.metrics.values import Share
from amg.similarity import NormalizedL2
from amg.worlds.drawings import ordinary, sample, training_images
from experiments.tasks.audit import Side, with_floor

SIDE, ASYMMETRIC = 32, 26


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training images, two of them near-duplicates; and images of which three are copies, and one cannot be read."""
    root = tmp_path_factory.mktemp("audit")
    training = training_images(SIDE, n=88).images
    twin = (training[0] * 0.98).clamp(-1, 1)
    (root / "train").mkdir()
    for i, image in enumerate([*training, twin]):
        save(image, root / "train" / f"{i:03d}.png")
        (root / "train" / f"{i:03d}.txt").write_text(f"caption {i}")
    (root / "made" / "below").mkdir(parents=True)
    components = ordinary(SIDE)
    novel = sample(components, torch.arange(20) * 7 + 400, torch.Generator().manual_seed(99))
    for i, image in enumerate(novel):
        save(image, root / "made" / f"novel{i:02d}.png")
    save(training[0], root / "made" / "verbatim.png")
    save(training[ASYMMETRIC].flip(2), root / "made" / "below" / "mirrored.png")
    buffer = io.BytesIO()
    to_pil_image(training[9] / 2 + 0.5).save(buffer, "JPEG", quality=80)
    (root / "made" / "recompressed.jpg").write_bytes(buffer.getvalue())
    (root / "made" / "broken.png").write_bytes(b"nothing")
    return root


def save(image, file):
    to_pil_image(image.add(1).mul(127.5).round().to(torch.uint8)).save(file)


def audit(command, folders, *more):
    data = ("data=folder", f"data.path={folders / 'train'}", f"task.images={folders / 'made'}", "trainer=cpu")
    return command("task=audit", *data, "output_dir=out", *more)


def test_copies_of_any_tool_are_found_and_explained(command, folders, tmp_path):
    code, out, err = audit(command, folders, f"data.size={SIDE}")
    assert code == 0, err
    with open(tmp_path / "out" / "images.csv") as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert len(rows) == 23 and "broken.png" not in rows
    for name, of in (
        ("verbatim.png", "caption 0"),
        ("mirrored.png", f"caption {ASYMMETRIC}"),
        ("recompressed.jpg", "caption 9"),
    ):
        assert rows[name]["copy_guide"] == "True" and rows[name]["caption"] == of
    novel = [row for name, row in rows.items() if name.startswith("novel")]
    assert sum(row["copy_guide"] == "True" for row in novel) <= 1
    assert "copies by the guide: " in out and "/23" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "broken.png (UnidentifiedImageError)" in page and "caption 0" in page and "near-duplicates" in page
    assert page.count("<img") >= 2 * 23  # pairs, and the training images that were copied
    again = audit(command, folders, f"data.size={SIDE}", "task.mirrored=false")
    assert again[0] == 0
    with open(tmp_path / "out" / "images.csv") as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert rows["mirrored.png"]["copy_guide"] == "False"


def test_too_many_copies_end_the_command_with_one(command, folders, tmp_path):
    with pytest.raises(SystemExit, match="of the images are copies, more than task.fail_above=0.01: "):
        audit(command, folders, f"data.size={SIDE}", "task.fail_above=0.01")
    assert (tmp_path / "out" / "report.html").is_file()
    assert audit(command, folders, f"data.size={SIDE}", "task.fail_above=0.9")[0] == 0


def test_a_models_own_images_are_audited(command, tmp_path):
    drawn = ("n_samples=6", "sampler.steps=4", "metrics.extractor=none", "trainer=cpu", "output_dir=run")
    code, out, err = command("task=audit", *drawn)
    assert code == 0, err
    assert (tmp_path / "run" / "audit" / "report.html").is_file() and "/6 (" in out.partition("by the guide")[2]


def test_mistakes_are_told_in_a_line(command, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "task.images: " in command("task=audit", "task.images=empty")[2]
    assert command("task=audit", "task.images=empty")[2].count("\n") == 1
    assert "task.images: " in command("task=audit", "task.images=nowhere")[2]
    assert "task.rate must lie in [0, 1], got 2" in command("task=audit", "task.images=empty", "task.rate=2.0")[2]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no")
    assert "none of 1 images can be read, e.g. a.png" in command("task=audit", "task.images=bad")[2]


def test_a_threshold_is_raised_until_the_training_set_allows_it():
    class Fixed:
        copy = 0.5

    values = torch.tensor([0.1, 0.2, 0.6, 0.7, 0.8, 0.99, 0.3, 0.3, 0.3, 0.3])
    side = Side("fixed", Fixed(), values, torch.zeros(10, dtype=torch.long))
    every = torch.ones(10, dtype=torch.bool)
    raised = with_floor(side, every, 0.2)
    assert raised.threshold == pytest.approx(0.7) and raised.false == Share(2, 10)
    own = with_floor(side, every, 0.5)
    assert own.threshold == 0.5 and own.false == Share(4, 10)
    aside = with_floor(side, values < 0.9, 0.0)
    assert aside.threshold == pytest.approx(0.8) and aside.false == Share(0, 9)


def test_the_others_of_a_training_set_are_those_of_a_bank_without_the_image():
    from amg.bank import TrainingBank
    from amg.similarity import DescriptorSimilarity

    images = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = TrainingBank.from_tensors(images)
    for make in (lambda bank: NormalizedL2(bank, k=4), lambda bank: DescriptorSimilarity(bank, lambda x: x.flatten(1))):
        found = make(whole).others(images, torch.arange(9))
        for i in range(9):
            rest = [j for j in range(9) if j != i]
            value, index = make(TrainingBank.from_tensors(images[rest]))(images[i : i + 1])
            assert found.value[i].item() == pytest.approx(value.item(), abs=1e-5) and found.index[i] == rest[int(index)]
