"""Training sets as users have them: tars, img2dataset's folders, what `datasets` saves; each read as one bank."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from amg import TrainingBank
from amg.bank.images import BankNote
from amg.bank.sources import opened
from amg.bank.sources.base import expanded
from amg.bank.vectors import Identity
from amg.similarity import DescriptorSimilarity


def encoded(value, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def tar_of(path, members):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder):
    """Two tars with a gap in their numbers: captions in .txt, in .json, none; one corrupt image, one twice."""
    tar_of(
        folder / "00000.tar",
        [
            ("a/001.jpg", encoded(10, "JPEG")),
            ("a/001.txt", b"first\n"),
            ("a/002.x.png", encoded(20)),
            ("a/002.json", json.dumps({"caption": "second", "url": "…"}).encode()),
            ("003.png", b"no image"),
            ("003.txt", b"broken"),
            ("._003.png", b"a fork of macOS"),
        ],
    )
    return tar_of(folder / "00002.tar", [("004.cls", b"3"), ("004.png", encoded(30)), ("005.png", encoded(20))])


def test_tars_are_read_where_they_lie(tmp_path):
    shards(tmp_path / "tars")
    with pytest.warns(
        BankNote, match="1 of 5 images cannot be read .*003.png .*2 of 4 images have no caption .*.json mem"
    ):
        bank = TrainingBank.build(tmp_path / "bank", tmp_path / "tars")
    assert bank.keys == ["00000.tar/a/001.jpg", "00000.tar/a/002.x.png", "00002.tar/004.png"]
    assert bank.captions == ["first", "second", ""] and bank.multiplicity.tolist() == [1, 2, 1]
    assert bank.counts == {
        "images": 5, "entries": 3, "repeats": 1, "broken": 1, "without caption": 2, "not downloaded": 0,
    }  # fmt: skip
    again = TrainingBank.open(tmp_path / "bank")
    values = ((again.pictures[:][:, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert values == [10, 20, 30] and again.digest() == bank.digest()


def test_braces_name_files_and_leave_out_gaps(tmp_path):
    shards(tmp_path)
    path = f"{tmp_path}/{{00000..00003}}.tar"
    assert [file.name for file in expanded(path)] == ["00000.tar", "00002.tar"]
    assert [row.key for row in opened(path).rows(3)] == ["00002.tar/004.png", "00002.tar/005.png"]
    with pytest.raises(FileNotFoundError, match="none of the 2 files of"):
        expanded(f"{tmp_path}/{{8,9}}.tar")


@pytest.mark.parametrize("cut", [-1100, -600, -1024, 700])
def test_a_tar_that_is_cut_short_is_named(tmp_path, cut):
    file = tar_of(tmp_path / "a.tar", [("1.png", encoded(1)), ("2.png", np.random.bytes(1400))])
    whole = file.read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512 + 1024)
    file.write_bytes(whole[:cut])
    if cut == -600:  # one block of the end mark is left, which is enough
        assert len(list(opened(file).rows())) == 2
        return
    with pytest.raises(ValueError, match=r"data.path: .*a.tar is cut short.*: copy it again|it lacks the end mark"):
        list(opened(file).rows())


def test_a_compressed_tar_is_told_from_a_broken_one(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(ValueError, match="a.tar is cut short or no tar .*unpack it: a compressed tar has no offsets"):
        list(opened(tmp_path / "a.tar").rows())


def img2dataset(folder):
    """As it leaves a folder of tars: beside each, its list and its counts."""
    tar_of(folder / "00000.tar", [("000000000.jpg", encoded(9, "JPEG")), ("000000000.txt", b"one")])
    table = {
        "url": ["a", "b", "c"],
        "caption": ["one", "two", "three"],
        "key": ["000000000", "000000001", "000000002"],
        "status": ["success", "failed_to_download", "failed_to_download"],
        "error_message": [None, "HTTP Error 404", "HTTP Error 404"],
    }
    pq.write_table(pa.table(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def test_a_folder_of_img2dataset_is_its_tars_and_counts_what_was_not_downloaded(tmp_path):
    bank = TrainingBank.from_folder(img2dataset(tmp_path), cache=None)
    assert bank.captions == ["one"] and bank.rows.info["missed"] == {"HTTP Error 404": 2}
    with pytest.raises(
        ValueError, match="no image column in .*00000.parquet, which has url, .*img2dataset's list; name"
    ):
        TrainingBank.from_folder(tmp_path, kind="parquet")


def test_a_folder_of_datasets_is_read_with_its_classes_as_captions(tmp_path):
    features = datasets.Features({"scan": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [{"bytes": data, "path": None} for data in (encoded(1), b"no image", encoded(3))]
    table = datasets.Dataset.from_dict({"scan": cells, "label": [1, 0, 0]}, features=features)
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "saved")
    options = {"image_column": "scan", "caption_column": "label", "cache": None}
    with pytest.warns(BankNote, match="1 of 3 images cannot be read .*row 1 "):
        bank = TrainingBank.from_folder(tmp_path / "saved", **options)
    assert bank.captions == ["dog", "cat"] and ((bank.pictures[1][0, 0, 0] + 1) * 127.5).round() == 3
    assert len(TrainingBank.from_folder(tmp_path / "saved", split="test", **options)) == 1
    with pytest.raises(ValueError, match=r"data.image_column: no column pixels in .*saved, which has scan, label"):
        TrainingBank.from_folder(tmp_path / "saved", image_column="pixels")
    with pytest.raises(ValueError, match="data.path: no image column in .*which has scan, label: data.image_column"):
        TrainingBank.from_folder(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="`datasets` cannot load .*split val: "):
        TrainingBank.from_folder(tmp_path / "saved", split="val")
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.warns(BankNote):
        assert TrainingBank.from_folder(tmp_path / "a.parquet", **options).captions == ["dog", "cat"]


def test_columns_that_are_not_there_are_told_with_those_that_are(tmp_path):
    pq.write_table(pa.table({"image": [encoded(1)], "alt": ["x"]}), tmp_path / "a.parquet")
    assert TrainingBank.from_folder(tmp_path / "a.parquet", caption_column="ALT", cache=None).captions == ["x"]
    with pytest.raises(ValueError, match="data.caption_column: no column text in .*a.parquet, which has image, alt"):
        TrainingBank.from_folder(tmp_path, caption_column="text")


def test_a_split_of_parquet_is_the_files_that_begin_with_it(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for name, values in (("train-0", [10, 20]), ("train-1", [30]), ("test-0", [40])):
        table = {"image": [encoded(value) for value in values], "text": [f"{value}" for value in values]}
        pq.write_table(pa.table(table), files / f"{name}.parquet")
    built = TrainingBank.build(tmp_path / "bank", files, split="train")
    assert built.captions[:] == ["10", "20", "30"]
    assert TrainingBank.open(tmp_path / "bank").pictures[2].mul(127.5).add(127.5).round().unique() == 30
    assert len(TrainingBank.from_folder(files, cache=tmp_path / "cache")) == 4
    with pytest.raises(ValueError, match="data.split: no file .* begins with val; there is test-0.parquet, train-0"):
        opened(files, split="val")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="data.split: .* is of kind folder, which has no splits"):
        opened(tmp_path / "images", split="train")


def test_metadata_parquet_names_the_images_beside_it(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    pq.write_table(pa.table({"image_file_name": ["a.png"], "text": [["x", "y"]]}), tmp_path / "metadata.parquet")
    assert TrainingBank.from_folder(tmp_path, cache=None).all_captions == [("x", "y")]


def test_what_is_no_source_is_told(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.bin is neither a tar nor a Parquet file"):
        opened(tmp_path / "a.bin")
    with pytest.raises(
        ValueError, match="data.kind: unknown 'zip'; choose folder, tars, parquet, datasets, embeddings or null"
    ):
        opened(tmp_path, kind="zip")


def test_a_published_index_is_a_bank_without_images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(25, 48, generator=generator), dim=1)
    for folder in ("img_emb", "metadata"):
        (tmp_path / "laion" / folder).mkdir(parents=True)
    for n, part in enumerate(vectors.split(10)):
        rows = [(f"http://{n}/{i}", f"text {n} {i}") for i in range(len(part))]
        np.save(tmp_path / "laion" / "img_emb" / f"img_emb_{n}.npy", part.half().numpy())
        table = pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]})
        pq.write_table(table, tmp_path / "laion" / "metadata" / f"metadata_{n}.parquet")
    bank = TrainingBank.build(tmp_path / "bank", tmp_path / "laion")
    similarity = DescriptorSimilarity(bank, lambda images: images.flatten(1), identity=Identity("pixels", "none"))
    images = vectors[[3, 14, 24]].view(3, 3, 4, 4)
    value, index = similarity(images)
    assert bank.captions[index] == ["text 0 3", "text 1 4", "text 2 4"] and bank.keys[24] == "http://2/4"
    torch.testing.assert_close(value, torch.ones(3), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="is an index without images: http://0/0 cannot be shown"):
        bank.pictures[0]
    (tmp_path / "laion" / "metadata" / "metadata_2.parquet").unlink()
    with pytest.raises(
        ValueError, match="img_emb has 25 vectors in 3 files, metadata 20 rows in 2: they must be of one"
    ):
        opened(tmp_path / "laion")
