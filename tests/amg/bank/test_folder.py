"""Folders of pictures as banks."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from amg.bank import TrainingBank
from amg.bank.images import BankNote
from amg.bank.sources.folder import pictures_in
from amg.similarity import NormalizedL2, PCASimilarity


def save(path, value, size=(4, 4)):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have no caption", BankNote)
        yield


def read_folder(path, size=None):
    """Distinct pictures and their captions, most frequent first, "" for none."""
    bank = TrainingBank.from_folder(path, size, cache=None)
    return bank.pictures[:], [list(texts) or [""] for texts in bank.all_captions]


def test_pictures_come_in_the_order_of_names_with_the_text_beside_them(tmp_path):
    save(tmp_path / "b.png", 255)
    save(tmp_path / "a.png", 0)
    save(tmp_path / "sub" / "c.PNG", 51)
    (tmp_path / "a.txt").write_text("black\n", encoding="utf-8")
    (tmp_path / "sub" / "c.txt").write_text("grün", encoding="utf-8")
    images, captions = read_folder(tmp_path)
    assert images[:, 0, 0, 0].tolist() == pytest.approx([-1.0, 1.0, 51 / 127.5 - 1])
    assert images.shape == (3, 3, 4, 4)
    assert captions == [["black"], [""], ["grün"]]


def test_without_any_caption_there_are_none(tmp_path):
    save(tmp_path / "a.png", 0)
    assert TrainingBank.from_folder(tmp_path, cache=None).all_captions == [()]


def test_size_makes_squares_by_averaging(tmp_path):
    halves = np.zeros((8, 8, 3), dtype=np.uint8)
    halves[:, 4:] = 255
    Image.fromarray(halves).save(tmp_path / "a.png")
    images, _ = read_folder(tmp_path, 2)
    assert images[0, 0].tolist() == [[-1, 1], [-1, 1]]
    assert read_folder(tmp_path, 1)[0].flatten().tolist() == pytest.approx([0.0] * 3, abs=0.01)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_wins_over_text_and_repeats_a_picture_named_twice(tmp_path, kind):
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 9)
    (tmp_path / "a.txt").write_text("ignored")
    rows = [("a.png", 'one, "two"'), ("a.png", "again"), ("b.png", "bee")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": name, "text": caption}) for name, caption in rows)
    else:
        text = 'file_name,text\na.png,"one, ""two"""\na.png,again\nb.png,bee\n'
    (tmp_path / f"metadata.{kind}").write_text(text)
    images, captions = read_folder(tmp_path)
    assert len(images) == 2 and captions == [['one, "two"', "again"], ["bee"]]
    bank = TrainingBank.from_folder(tmp_path)
    assert bank.multiplicity.tolist() == [2, 1] and bank.all_captions[0] == ('one, "two"', "again")


def test_corrupt_pictures_are_left_out_counted_and_listed(tmp_path):
    save(tmp_path / "a.png", 0)
    whole = (tmp_path / "a.png").read_bytes()
    for i in range(6):
        (tmp_path / f"broken{i}.png").write_bytes(whole[: 20 + i])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"7 of 8 images cannot be read.*broken0.png \(.*and 2 more"):
        images, _ = read_folder(tmp_path)
    assert len(images) == 1


@pytest.mark.parametrize("kind, place", [("bmp", 20), ("gif", 7), ("tif", None)])
def test_a_picture_whose_header_asks_for_too_many_pixels_is_left_out_as_a_corrupt_one(tmp_path, kind, place):
    save(tmp_path / "a.png", 0)
    save(tmp_path / f"b.{kind}", 0, (20_000, 4))
    data = bytearray((tmp_path / f"b.{kind}").read_bytes())
    if place is None:  # the width, one of the first entries of a TIFF
        place = data.index(b"\x00\x01\x04\x00\x01\x00\x00\x00") + 9
    data[place] = 0xFF  # the second byte of the width: 4 becomes 65,284
    (tmp_path / f"b.{kind}").write_bytes(data)
    with pytest.warns(BankNote, match=rf"1 of 2 images cannot be read.*b.{kind} \(DecompressionBombError\)"):
        images, _ = read_folder(tmp_path, 4)
    assert len(images) == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_pillow_only_warns_of_is_read(tmp_path, monkeypatch):
    save(tmp_path / "a.png", 0, (40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    assert len(read_folder(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{oops', "metadata.jsonl, line 2: no JSON"),
        ("metadata.jsonl", '{"file_name": "a.png"}', "line 1: expected file_name and text, got file_name"),
        (
            "metadata.csv",
            "file_name,text\na.png,x\nnone.png,y\n",
            "line 3: there is no image .*none.png",
        ),
    ],
)
def test_bad_metadata_is_named_by_its_line(tmp_path, name, text, message):
    save(tmp_path / "a.png", 0)
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_as_excel_writes_it_is_read(tmp_path, between):
    save(tmp_path / "a.png", 0)
    (tmp_path / "metadata.csv").write_bytes(f"file_name{between}text\r\na.png{between}grün\r\n".encode("utf-8-sig"))
    assert read_folder(tmp_path)[1] == [["grün"]]


@pytest.mark.parametrize("name, head", [("metadata.csv", "file_name,text\na.png,"), ("a.txt", "two\n")])
def test_captions_in_another_encoding_are_told_by_file_and_line(tmp_path, name, head):
    save(tmp_path / "a.png", 0)
    (tmp_path / name).write_bytes(f"{head}grün\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}, line 2: not UTF-8: save the file as UTF-8"):
        read_folder(tmp_path)


def test_each_folders_table_names_the_pictures_beside_it(tmp_path):
    for value, name in enumerate(("test/a.png", "test/deep/b.png", "train/a.png", "train/c.png", "z.png")):
        save(tmp_path / name, value)
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "train a"}')
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\ndeep/b.png,test b\na.png,test a\n")
    (tmp_path / "train" / "c.txt").write_text("train c")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/../z.png", "text": "z"}')
    assert read_folder(tmp_path)[1] == [["test a"], ["test b"], ["train a"], ["train c"], ["z"]]


def test_links_to_one_file_as_in_a_cache_of_the_hub_keep_their_own_captions(tmp_path):
    save(tmp_path / "blobs" / "x.png", 0)
    for split in ("test", "train"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "a.png").symlink_to(tmp_path / "blobs" / "x.png")
        (tmp_path / "data" / split / "metadata.csv").write_text(f"file_name,text\na.png,{split}\n")
    assert read_folder(tmp_path / "data")[1] == [["test", "train"]]


def test_a_picture_in_two_tables_is_refused(tmp_path):
    save(tmp_path / "train" / "a.png", 0)
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/a.png,x\n")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "y"}')
    with pytest.raises(
        ValueError, match=r"train/metadata.jsonl, line 1: .*metadata.csv names .*a.png too: leave it in"
    ):
        read_folder(tmp_path)


def test_folders_that_cannot_serve_say_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path: there is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no images in"):
        read_folder(tmp_path)
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 0, (5, 5))
    with pytest.raises(ValueError, match="images of several sizes .*b.png of 5×5 after 4×4: set data.size"):
        NormalizedL2(TrainingBank.from_folder(tmp_path, cache=None))(torch.zeros(1, 3, 4, 4))


def test_captions_are_found_whatever_the_case_and_what_has_none_is_counted_once(tmp_path):
    for i, (image, caption) in enumerate([("A.JPG", "A.TXT"), ("b.png", "b.caption"), ("c.png", "c.png.txt")]):
        save(tmp_path / image, 40 * i)
        (tmp_path / caption).write_text("a red fox")
    with pytest.warns(BankNote) as notes:
        bank = TrainingBank.from_folder(tmp_path, cache=None)
    assert bank.captions == ["a red fox", "", ""]
    said = "2 of 3 images have no caption (captions are .txt, metadata.jsonl, metadata.csv, metadata.parquet)"
    assert [str(note.message) for note in notes] == [f"{tmp_path}: {said}"]
    (tmp_path / "Metadata.CSV").write_text("File_Name, Text\nb.png, b\nc.png, c\n")
    assert TrainingBank.from_folder(tmp_path, cache=None).captions == ["a red fox", "b", "c"]


@pytest.mark.parametrize("name", ["captions.json", "metadata.tsv"])
def test_tables_of_other_names_leave_a_note(tmp_path, name):
    save(tmp_path / "a.png", 0)
    (tmp_path / name).write_text("file_name\ttext\na.png\tx\n")
    with pytest.warns(BankNote, match="1 of 1 images have no caption"):
        TrainingBank.from_folder(tmp_path, cache=None)


def test_all_that_pillow_opens_is_read_and_what_it_does_not_is_counted(tmp_path):
    for value, (suffix, kind) in enumerate(
        {
            "jfif": "JPEG",
            "jpe": "JPEG",
            "avif": "AVIF",
            "jp2": "JPEG2000",
            "ppm": "PPM",
            "tga": "TGA",
            "PNG": "PNG",
        }.items()
    ):
        Image.new("RGB", (4, 4), (30 * value,) * 3).save(tmp_path / f"a{value}.{suffix}", kind)
    for name in ("b.heic", "b.jxl", "b.svg", "b.eps", "c.bin"):
        (tmp_path / name).write_bytes(b"no image")
    for name in ("notes.md", "numbers.h5", "page.pdf", "film.mpg"):
        (tmp_path / name).write_bytes(b"no image either")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "c.bin", "text": "named, so never dropped silently"}')
    with pytest.warns(
        BankNote, match=r"5 of 12 images cannot be read .*: b.eps .*, c.bin \(Unid.*7 of 7 images have no"
    ):
        assert len(TrainingBank.from_folder(tmp_path, cache=None)) == 7


def test_an_image_that_metadata_names_is_read_whatever_its_name_or_place(tmp_path):
    save(tmp_path / "a.png", 3)
    (tmp_path / "a.png").rename(tmp_path / "no_suffix")
    save(tmp_path / ".hidden" / "b.png", 5)
    save(tmp_path.parent / f"{tmp_path.name}-beside" / "c.png", 7)
    rows = ["no_suffix,a", ".hidden/b.png,b", f"../{tmp_path.name}-beside/c.png,c"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    assert sorted(TrainingBank.from_folder(tmp_path, cache=None).captions) == ["a", "b", "c"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    save(tmp_path / ".home" / "train" / "a.png", 0)
    train = tmp_path / ".home" / "train"  # hidden itself, as a cache of the hub is
    (train / "a.txt").write_text("a")
    save(train / ".ipynb_checkpoints" / "a-checkpoint.png", 0)
    save(train / "sub" / ".git" / "x.png", 9)
    (train / "._a.png").write_bytes(b"a fork of macOS")
    (train / ".ipynb_checkpoints" / "metadata.csv").write_text("file_name,text\nnone.png,x\n")
    bank = TrainingBank.from_folder(train, cache=None)
    assert bank.multiplicity.tolist() == [1] and bank.captions == ["a"]
    with pytest.raises(FileNotFoundError, match="no images in"):
        pictures_in(train / "sub")


def test_null_is_no_caption_and_a_list_is_several(tmp_path):
    for value, name in enumerate("abcd"):
        save(tmp_path / f"{name}.png", value)
    rows = [("a", None), ("b", ["x", None, "y "]), ("c", []), ("d", "z"), ("a", "again")]
    table = "\n".join(json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in rows)
    (tmp_path / "metadata.jsonl").write_text(table)
    (tmp_path / "c.txt").write_text("beside")
    bank = TrainingBank.from_folder(tmp_path, cache=None)
    assert bank.all_captions == (("again",), ("x", "y"), ("beside",), ("z",))
    assert bank.multiplicity.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("value, kind", [("3", "int"), ('["x", 3]', "int"), ('{"en": "x"}', "dict"), ("true", "bool")])
def test_a_caption_of_another_type_is_named_by_its_line(tmp_path, value, kind):
    save(tmp_path / "a.png", 0)
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": {value}}}')
    with pytest.raises(ValueError, match=rf"metadata.jsonl, line 1: text is .* \({kind}\), expected text"):
        read_folder(tmp_path)


def test_a_comma_that_is_not_quoted_is_refused_by_its_line(tmp_path):
    save(tmp_path / "a.png", 0)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a fox, running, in snow\n")
    with pytest.raises(ValueError, match=r"metadata.csv, line 2: 4 columns where the header has 2 \(quote texts with"):
        read_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text('file_name, text\na.png, "a fox, running",,\n')  # blanks, as Excel leaves
    assert read_folder(tmp_path)[1] == [["a fox, running"]]


def test_a_table_written_on_windows_is_read(tmp_path):
    save(tmp_path / "img" / "sub" / "a.png", 0)
    (tmp_path / "metadata.csv").write_text("file_name,text\nimg\\sub\\a.png,x\n")
    assert read_folder(tmp_path)[1] == [["x"]]


@pytest.mark.parametrize("source", [".", "a.parquet"])
def test_height_and_width_may_differ_and_pixels_compare_then_too(tmp_path, source):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 40, 3), dtype=np.uint8)
    for name, image in zip("abcde", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    data = [file.read_bytes() for file in sorted(tmp_path.glob("*.png"))]
    pq.write_table(pa.table({"image": data, "text": list("abcde")}), tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BankNote)
        bank = TrainingBank.from_folder(tmp_path / source, size=(24, 16), cache=None)
    assert bank.pictures[:].shape == (5, 3, 24, 16)
    assert (
        NormalizedL2(bank)(bank.pictures[:]).index.tolist()
        == PCASimilarity(bank)(bank.pictures[:]).index.tolist()
        == [*range(5)]
    )
    with pytest.raises(ValueError, match=r"load the bank with size=\(16, 24\)"):
        NormalizedL2(bank)(bank.pictures[:].mT)
