"""CIFAR-10's pictures, what goes wrong with them, and the greedy deduplication of the reference."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from amg import TrainingBank
from amg.bank import dedupe as dedupe_module
from amg.bank.cifar10 import CLASSES, cifar10_bank, read_cifar10
from amg.bank.dedupe import dedupe, kept_pictures

PICTURES = Path(__file__).parents[2] / "data" / "cifar10_200.parquet"


@pytest.fixture(scope="module")
def pictures():
    return read_cifar10(PICTURES)


@pytest.fixture
def table():
    return pq.read_table(PICTURES).slice(0, 60)


def write(table, path, **columns):
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return path


def naive(pixels, threshold, k, scale):
    """The greedy pass one picture at a time, in float64."""
    there = list(range(len(pixels)))
    for i in range(len(pixels)):
        others = [j for j in there if j != i]
        distance = torch.linalg.vector_norm(pixels[others].double() - pixels[i].double(), dim=1).sort().values[:k]
        if len(others) >= k and distance[0] / (scale * distance.mean()) < threshold:
            there.remove(i)
    return there


def test_real_pictures_are_read_in_order(pictures):
    images, labels = pictures
    assert images.shape == (200, 3, 32, 32) and images.dtype == torch.float32
    assert torch.bincount(labels).tolist() == [20] * 10
    assert -1 <= images.min() < -0.95 and 0.95 < images.max() <= 1
    last = pq.read_table(PICTURES).to_pylist()[-1]
    expected = np.asarray(Image.open(io.BytesIO(last["img"]["bytes"])).convert("RGB")) / 127.5 - 1
    np.testing.assert_allclose(images[-1].permute(1, 2, 0), expected, atol=1e-6)
    assert labels[-1] == last["label"]


def test_a_folder_holds_both_splits(tmp_path, table):
    write(table.slice(0, 5), tmp_path / "train-00000-of-00002.parquet")
    write(table.slice(5, 6), tmp_path / "train-00001-of-00002.parquet")
    write(table.slice(20, 3), tmp_path / "test-00000-of-00001.parquet")
    images, labels = read_cifar10(tmp_path)
    assert labels.tolist() == table["label"].to_pylist()[:11]
    assert len(read_cifar10(tmp_path, split="test")[0]) == 3


def test_torchvision_layout_is_read_through_torchvision(tmp_path, monkeypatch, pictures):
    from torchvision.datasets import CIFAR10

    asked = {}

    class Local(CIFAR10):  # torchvision's own class, but for the 170 MB
        def __init__(self, root, train, download):
            asked.update(root=root, train=train, download=download)
            images, labels = pictures
            self.data = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            self.targets = labels.tolist()

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Local)
    images, labels = read_cifar10(tmp_path, split="test", download=True)
    assert asked == {"root": tmp_path, "train": False, "download": True}
    torch.testing.assert_close(images, pictures[0])
    assert torch.equal(labels, pictures[1])


def test_bank_is_captioned_by_class_and_its_count_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AMG_CACHE", str(tmp_path))
    everything = cifar10_bank(PICTURES, deduplicate=None)
    bank = cifar10_bank(PICTURES)
    gone = len(everything) - len(bank)
    assert gone > 0
    assert f"200 distinct images, {gone} near-copies left out, {200 - gone} to refer to" in capsys.readouterr().err
    _, labels = read_cifar10(PICTURES)
    assert everything.captions == [CLASSES[label] for label in labels]
    kept = {picture.numpy().tobytes(): i for i, picture in enumerate(everything.pictures)}
    assert all(
        bank.captions[i] == everything.captions[kept[picture.numpy().tobytes()]]
        for i, picture in enumerate(bank.pictures[:])
    )


# -- deduplication ---------------------------------------------------------------------------------------------------


def test_hand_worked_greedy_pass():
    # on a line, k = 2, α = 0.5: nL2 = d1 / (α (d1 + d2) / 2) = 4 d1 / (d1 + d2)
    pixels = torch.tensor([[0.0], [1.0], [10.0], [14.0], [22.0]])
    # 0: 4·1/11 = 0.36, goes.  1: 9 and 13, 1.64.  10: 4 and 9, 1.23.  14: 4 and 8, 1.33.  22: 8 and 12, 1.6
    assert kept_pictures(pixels, threshold=1.0, k=2).tolist() == [1, 2, 3, 4]
    # 10 goes as well; then 14 has 8 and 13, 1.52, and stays; 22 has 8 and 21, 1.10, and goes
    assert kept_pictures(pixels, threshold=1.25, k=2).tolist() == [1, 3]
    # 0, 1 and 10 go (then at 4 and 12, 1.0); 14 and 22 have no two neighbours left and stay
    assert kept_pictures(pixels, threshold=1.7, k=2).tolist() == [3, 4]


@pytest.mark.parametrize("spare, block", [(30, 64), (0, 7), (3, 1000)])
def test_matrix_products_agree_with_the_naive_greedy_pass(pictures, spare, block):
    pixels = pictures[0].flatten(1)
    generator = torch.Generator().manual_seed(0)
    copies = pixels[:40] + 0.05 * torch.randn(40, pixels.shape[1], generator=generator)
    pixels = torch.cat([pixels, copies, copies[:20] + 0.01])
    expected = naive(pixels, 1.0, 20, 0.5)
    assert 150 < len(expected) < 240
    assert kept_pictures(pixels, 1.0, 20, 0.5, block=block, spare=spare).tolist() == expected


def test_of_a_group_of_copies_exactly_one_stays(pictures):
    images = pictures[0][:80]
    bank = TrainingBank.from_tensors(torch.cat([images, images[:5] * 0.999, images[:5] * 0.998]))
    kept = kept_pictures(bank.pixels(), threshold=0.2, k=20)
    assert [i for i in range(90) if i not in kept] == [0, 1, 2, 3, 4, 80, 81, 82, 83, 84]


def test_second_run_reads_the_cache_and_another_bank_does_not(tmp_path, monkeypatch, pictures):
    bank = TrainingBank.from_tensors(pictures[0])
    first = dedupe(bank, k=20, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(dedupe_module, "kept_pictures", lambda *_: pytest.fail("searched again"))
        assert dedupe(bank, k=20, cache=tmp_path).digest() == first.digest()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert dedupe(bank, k=20, cache=tmp_path).digest() == first.digest(), "a file that is cut off is made anew"
    dedupe(bank, k=19, cache=tmp_path)
    dedupe(TrainingBank.from_tensors(pictures[0][:150]), k=20, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_bank_too_small_to_deduplicate_is_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match="more than k=50 distinct images, the bank has 40"):
        dedupe(TrainingBank.from_tensors(pictures[0][:40]), cache=tmp_path)


# -- bad input: one line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label, told", [(-1, "-1"), (10, "10"), (None, "''")])
def test_label_out_of_range_names_its_row(tmp_path, table, label, told):
    labels = table["label"].to_pylist()
    labels[7] = label
    with pytest.raises(ValueError, match=rf"bad.parquet, row 7: label {told} is not one of .*0 … 9"):
        read_cifar10(write(table, tmp_path / "bad.parquet", label=labels))


@pytest.mark.parametrize("label", ["dragon", "3", 1.5, float("nan"), True, [3]])
def test_a_label_that_is_no_class_names_its_row_too(tmp_path, table, label):
    place, name = table.column_names.index("label"), re.escape(repr(label))
    same = table.slice(0, 7).set_column(place, "label", pa.array([label] * 7))
    pq.write_table(same, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=rf"bad.parquet, row 0: label {name} is not one of .*0 … 9"):
        read_cifar10(tmp_path / "bad.parquet")


def test_names_of_classes_are_labels_too(tmp_path, table):
    place = table.column_names.index("label")
    names = pa.array([CLASSES[label] for label in table["label"].to_pylist()])
    pq.write_table(table.set_column(place, "label", names), tmp_path / "a.parquet")
    assert read_cifar10(tmp_path / "a.parquet")[1].tolist() == table["label"].to_pylist()


def test_whole_labels_are_read_from_a_column_of_floats(tmp_path, table):
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, "label", table["label"].cast(pa.float64())), tmp_path / "a.parquet")
    assert read_cifar10(tmp_path / "a.parquet")[1].tolist() == table["label"].to_pylist()


def test_truncated_parquet_is_one_line(tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(PICTURES.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"bad.parquet is no readable Parquet file \(truncated\?\)") as error:
        read_cifar10(path)
    assert "\n" not in str(error.value)


def test_unreadable_picture_and_wrong_size_name_their_row(tmp_path, table):
    cells = table["img"].to_pylist()
    with pytest.raises(ValueError, match="row 3: no readable image"):
        read_cifar10(write(table, tmp_path / "a.parquet", img=cells[:3] + [{"bytes": b"no", "path": ""}] + cells[4:]))
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "png")
    bomb = {"bytes": buffer.getvalue(), "path": ""}
    with pytest.raises(ValueError, match=r"row 4: no readable image \(DecompressionBombError\)"):
        read_cifar10(write(table, tmp_path / "c.parquet", img=cells[:4] + [bomb] + cells[5:]))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "png")
    cells[5] = {"bytes": buffer.getvalue(), "path": ""}
    with pytest.raises(ValueError, match=r"row 5: an image of \(64, 64\), CIFAR-10's are 32"):
        read_cifar10(write(table, tmp_path / "b.parquet", img=cells))


def test_missing_column_file_or_split_is_one_line(tmp_path, table):
    pq.write_table(table.drop_columns("label"), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column label in .*x.parquet, which has img"):
        read_cifar10(tmp_path / "x.parquet")
    with pytest.raises(FileNotFoundError, match="no .parquet file at .*none.parquet"):
        read_cifar10(tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="data.download=true.*ClosedForm"):
        read_cifar10(tmp_path)
    with pytest.raises(ValueError, match="train and test, got 'val'"):
        read_cifar10(tmp_path, split="val")
