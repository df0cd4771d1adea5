"""Banks read from Parquet files in the layouts that data sets come in."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from amg.bank import TrainingBank
from amg.bank.images import BankNote


def png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_pixels_and_captions_come_through_exactly(tmp_path):
    path = write(
        tmp_path / "a.parquet", image=[{"bytes": png(v), "path": None} for v in (0, 51, 255)], text=list("xyz")
    )
    bank = TrainingBank.from_folder(path)
    assert bank.pictures[:][:, 0, 0, 0].tolist() == pytest.approx([-1, -0.6, 1])
    assert bank.captions == ["x", "y", "z"]


def test_plain_bytes_and_several_files_of_a_folder_are_read_in_order(tmp_path):
    write(tmp_path / "b.parquet", img=[png(2)], caption=["second"])
    write(tmp_path / "a.parquet", img=[png(1)], caption=["first"])
    assert TrainingBank.from_folder(tmp_path).captions == ["first", "second"]


def test_a_list_of_captions_stands_for_repeats(tmp_path):
    path = write(tmp_path / "a.parquet", image=[png(1), png(2)], captions=[["u", "v", "v"], []])
    bank = TrainingBank.from_folder(path)
    assert bank.multiplicity.tolist() == [3, 1]
    assert bank.all_captions == [("v", "u"), ()]


def test_missing_captions_leave_the_others_alone(tmp_path):
    path = write(tmp_path / "a.parquet", image=[png(1), png(2)], caption=[None, "kept"])
    assert TrainingBank.from_folder(path).captions == ["", "kept"]


def test_pictures_are_resized_by_averaging(tmp_path):
    checks = np.zeros((4, 4, 3), np.uint8)
    checks[::2], checks[1::2] = 51, 255
    buffer = io.BytesIO()
    Image.fromarray(checks).save(buffer, "PNG")
    path = write(tmp_path / "a.parquet", image=[buffer.getvalue(), png(0, size=8)])
    bank = TrainingBank.from_folder(path, size=2)
    assert bank.pictures[:].shape == (2, 3, 2, 2)
    assert torch.allclose(bank.pictures[0], torch.tensor(153 / 127.5 - 1))


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"scan": [png(1)]}, "no image column in .*bad.parquet, which has scan: data.image_column names another"),
        ({"image": [b"no png", None]}, r"none of 2 images can be read, e.g. bad.parquet, row 0 \(Unidentified"),
        ({"image": pa.array([], pa.binary())}, "holds no rows"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, columns, message):
    path = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        TrainingBank.from_folder(path)


def test_corrupt_pictures_are_left_out_counted_and_listed(tmp_path):
    path = write(tmp_path / "a.parquet", image=[png(1), b"no png", None, png(2)], caption=list("wxyz"))
    with pytest.warns(BankNote, match=r"2 of 4 images cannot be read.*a.parquet, row 1 \(Uni.*, row 2 \(Uni"):
        bank = TrainingBank.from_folder(path)
    assert bank.captions == ["w", "z"]


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = write(tmp_path / "cut.parquet", image=[png(1)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut.parquet is no readable Parquet file"):
        TrainingBank.from_folder(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .parquet file at .*: give a .parquet file or a folder that holds"):
        TrainingBank.from_folder(tmp_path, kind="parquet")
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing.parquet"):
        TrainingBank.from_folder(tmp_path / "missing.parquet")


@pytest.mark.parametrize("values, kind", [([3], "int64"), ([1.5], "double"), ([[3]], "list<"), ([b"x"], "binary")])
def test_captions_that_are_no_text_are_refused_by_column_and_type_before_anything_is_decoded(tmp_path, values, kind):
    path = write(tmp_path / "int.parquet", image=[b"no png"], text=values)
    with pytest.raises(ValueError, match=rf"int.parquet: column text holds {kind}.*; captions are text or lists of it"):
        TrainingBank.from_folder(path)


def test_text_in_every_form_that_parquet_has_is_read(tmp_path):
    for column in (
        pa.array(["x", None], pa.large_string()),
        pa.array(["x", ""]).dictionary_encode(),
        pa.array([["x"], []], pa.large_list(pa.string())),
    ):
        path = write(tmp_path / "a.parquet", image=[png(1), png(2)], TEXT=column)
        with pytest.warns(
            BankNote, match="1 of 2 images have no caption .captions are columns captions, text, caption"
        ):
            assert TrainingBank.from_folder(path, cache=None).captions == ["x", ""]
    path = write(tmp_path / "a.parquet", image=[png(1)], text=pa.nulls(1), caption=["y"])
    assert TrainingBank.from_folder(path, cache=None).captions == ["y"]
