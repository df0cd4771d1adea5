"""Banks on disk: built once, gone on with, appended to, refused where their source is another."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amg import TrainingBank
from amg.bank import rows as module
from amg.bank.images import BankNote
from amg.bank.rows import Rows
from amg.bank.vectors import Identity
from amg.similarity import DescriptorSimilarity, NormalizedL2, PCASimilarity

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(module, "FILE", 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have no caption", BankNote)
        yield


def save(folder, names, seed=0):
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def names(n, start=0):
    return [f"{i:03d}" for i in range(start, n)]


def test_a_bank_is_opened_without_its_source_until_somebody_looks_at_an_image(tmp_path):
    folder = save(tmp_path / "train", names(40))
    told = []
    built = TrainingBank.build(tmp_path / "bank", folder, on_rows=told.append)
    assert told == [16, 16, 8] and len(built) == 40
    folder.rename(tmp_path / "away")
    bank = TrainingBank.open(tmp_path / "bank")
    assert bank.digest() == built.digest() and bank.keys[39] == "039.png" and bank.shape == (3, 8, 8)
    with pytest.raises(FileNotFoundError, match="data.path: there is no folder .*train"):
        bank.pictures[3]
    (tmp_path / "away").rename(folder)
    assert bank.pictures[3].shape == (3, 8, 8)
    (folder / "005.png").unlink()
    with pytest.raises(ValueError, match="data.path: 005.png of .*train is gone: build the bank anew"):
        bank.pictures[5]
    (folder / "003.png").write_bytes((folder / "004.png").read_bytes())
    with pytest.raises(ValueError, match="003.png of .*train is not what it was when the bank was built"):
        bank.pictures[3]


def described(bank):
    """The mean colours of quarters, and a list of the images that were looked at."""
    seen = []

    def embed(images):
        seen.extend(images)
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)

    return DescriptorSimilarity(bank, embed, identity=Identity("quarters", "none")), seen


def test_a_source_that_grows_at_its_end_is_appended_and_vectors_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("amg.bank.vectors.BLOCK", 16)
    folder = save(tmp_path / "train", names(40))
    before = TrainingBank.build(tmp_path / "bank", folder)
    similarity, seen = described(before)
    x = before.pictures[:2]
    assert similarity(x).index.tolist() == [0, 1] and len(seen) == 42
    save(folder, names(50, 40), seed=1)
    after = TrainingBank.build(tmp_path / "bank", folder)
    assert len(after) == 50 and after.digest() != before.digest() and after.keys[:40] == list(before.keys)
    similarity, seen = described(after)
    kept = similarity.vectors(torch.zeros(1))
    assert kept.shape == (50, 12) and len(seen) == 18  # the last block of before was not full
    expected = described(TrainingBank.from_folder(folder, cache=None))[0].vectors(torch.zeros(1))
    torch.testing.assert_close(kept, expected, atol=2e-3, rtol=0)


def test_the_size_that_images_are_decoded_to_is_remembered(tmp_path):
    folder = save(tmp_path / "train", names(3))
    TrainingBank.build(tmp_path / "bank", folder, size=(4, 6))
    assert TrainingBank.open(tmp_path / "bank").shape == (3, 4, 6)
    assert TrainingBank.open(tmp_path / "bank", size=2).pictures[:].shape == (3, 3, 2, 2)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="data.cache=null keeps everything in memory.*/file"):
        TrainingBank.from_folder(save(tmp_path / "train", names(3)), cache=tmp_path / "file")


def test_new_images_of_a_folder_are_appended_wherever_they_stand_in_it(tmp_path):
    folder = save(tmp_path / "train", names(40))
    before = TrainingBank.build(tmp_path / "bank", folder)
    save(folder, ["000a", "020a", "z"], seed=1)
    after = TrainingBank.build(tmp_path / "bank", folder)
    assert after.keys == [*before.keys, "000a.png", "020a.png", "z.png"]
    assert torch.equal(after.pictures[:40], before.pictures[:])
    (folder / "003.png").unlink()
    with pytest.raises(
        ValueError, match="1 images of .*train are gone, e.g. 003.png: build the bank in another folder"
    ):
        TrainingBank.build(tmp_path / "bank", folder)


def test_a_source_that_changed_or_is_another_is_refused(tmp_path):
    folder = save(tmp_path / "train", names(40))
    TrainingBank.build(tmp_path / "bank", folder)
    TrainingBank.from_folder(folder, cache=tmp_path / "cache")
    (folder / "035.png").write_bytes((folder / "034.png").read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"035.png has \d+ bytes, \d+ before: build the bank in another folder"):
        TrainingBank.build(tmp_path / "bank", folder)
    with pytest.raises(ValueError, match="train is not what it was: build the bank in another folder"):
        TrainingBank.from_folder(folder, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="is a bank of .*train.*, not of .*other.*: name another folder"):
        TrainingBank.build(tmp_path / "bank", save(tmp_path / "other", names(3)))


def test_what_is_no_whole_bank_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no bank: TrainingBank.build makes one"):
        TrainingBank.open(tmp_path)
    (tmp_path / "bank.json").write_text('{"version": 1, "rows": null}')
    with pytest.raises(ValueError, match="is not whole: TrainingBank.build goes on with it"):
        TrainingBank.open(tmp_path)
    (tmp_path / "bank.json").write_text('{"version": 9}')
    with pytest.raises(ValueError, match="is of version 9, expected 1"):
        TrainingBank.open(tmp_path)


def test_pixels_are_kept_as_bytes_and_answer_as_those_in_memory(tmp_path, monkeypatch):
    folder = save(tmp_path / "train", names(40))
    expected = TrainingBank.from_folder(folder, cache=None)
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    monkeypatch.setattr("amg.bank.bank.HELD", 0)  # searched on disk
    bank = TrainingBank.build(tmp_path / "bank", folder)
    for kind in (NormalizedL2, PCASimilarity):
        (a, i), (b, j) = kind(bank)(x), kind(expected)(x)
        assert torch.equal(i, j)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert np.load(tmp_path / "bank" / "pixels" / "8x8.npy", mmap_mode="r").dtype == np.uint8


def test_an_image_that_is_broken_behind_its_header_is_never_an_answer(tmp_path):
    folder = save(tmp_path / "train", names(40))
    whole = (folder / "007.png").read_bytes()
    (folder / "007.png").write_bytes(whole[:60])
    bank = TrainingBank.build(tmp_path / "bank", folder)
    assert len(bank) == 40 and not bank.broken
    for similarity in (NormalizedL2(bank), PCASimilarity(bank)):
        grey = torch.full((1, 3, 8, 8), -1 / 255)
        assert 7 not in similarity.neighbours(grey, 39).flatten().tolist()
    assert list(bank.broken) == [7] and bank.counts["broken"] == 1
    assert list(TrainingBank.open(tmp_path / "bank").rows.unread()) == ["007.png (OSError)"]
    with pytest.warns(BankNote, match="1 of 40 images cannot be read"):
        assert len(TrainingBank.from_folder(folder, cache=None)) == 39


def test_repeats_are_found_over_all_files_and_keep_their_captions(tmp_path):
    folder = save(tmp_path / "train", names(30))
    for i, other in ((20, 3), (25, 3), (29, 0)):
        (folder / f"{i:03d}.png").write_bytes((folder / f"{other:03d}.png").read_bytes())
    for i in range(30):
        (folder / f"{i:03d}.txt").write_text("often" if i in (20, 25) else f"caption {i}")
    bank = TrainingBank.build(tmp_path / "bank", folder)
    assert len(bank) == 27 and bank.counts["repeats"] == 3
    assert bank.all_captions[3] == ("often", "caption 3") and bank.all_captions[0] == ("caption 0", "caption 29")
    assert bank.multiplicity[:4].tolist() == [2, 1, 1, 3] and bank.captions[[4, 26]] == ["caption 4", "caption 28"]
    some = bank.subset(torch.tensor([3, 5]))
    assert some.all_captions == [("often", "caption 3"), ("caption 5",)] and some.multiplicity.tolist() == [3, 1]
    assert torch.equal(some.pictures[1], bank.pictures[5])


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from amg import TrainingBank
from amg.bank import rows
from amg.bank.sources.folder import Folder
rows.FILE = 16
own = Folder.rows
Folder.rows = lambda self, start=0: (time.sleep(0.02) or row for row in own(self, start))
TrainingBank.build(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_whoever_is_killed_goes_on_and_two_at_once_leave_one_bank(tmp_path):
    folder = save(tmp_path / "train", names(80))
    call = [sys.executable, "-W", "ignore", "-c", SLOW.format(root=str(ROOT)), str(tmp_path / "bank"), str(folder)]
    for files in (1, 3):
        process = subprocess.Popen(call, env=os.environ)
        while len(list((tmp_path / "bank" / "rows").glob("[0-9]*"))) < files:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    both = [subprocess.Popen(call, env=os.environ) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    expected = Rows.build(tmp_path / "other", TrainingBank.open(tmp_path / "bank").rows._source())
    found = Rows.open(tmp_path / "bank")
    assert found.info["digest"] == expected.info["digest"] and len(found) == 80
