"""Descriptors kept on disk: computed once, resumed by shard, refused where they belong to something else."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amg.bank import TrainingBank
from amg.bank import vectors as module
from amg.bank.vectors import Identity, StoredVectors
from amg.similarity import DescriptorSimilarity


class Counting(nn.Module):
    """A linear descriptor that counts the pictures that it sees."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 5, generator=torch.Generator().manual_seed(seed)))
        self.weight.requires_grad_(False)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.flatten(1) @ self.weight.to(images)


def pictures(n, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def bank(cache, n=70, seed=0):
    return TrainingBank.from_tensors(pictures(n, seed), [f"caption {i}" for i in range(n)], "train/", cache)


def described(bank, seed=0, name="linear", **keys):
    net = Counting(seed)
    return net, DescriptorSimilarity(bank, net, identity=Identity.of(net, name), **keys)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)


def close(a, b):
    """Up to the half precision of what is kept."""
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_a_second_bank_of_the_same_pictures_computes_nothing_and_answers_alike(tmp_path):
    x = pictures(3, seed=1)
    net, similarity = described(bank(tmp_path))
    first = similarity(x)
    assert net.seen == 70 + 3
    net, similarity = described(bank(tmp_path))
    again = similarity(x)
    assert net.seen == 3
    close(first.value, again.value)
    assert torch.equal(first.index, again.index)
    _, plain = described(bank(None))
    close(plain(x).value, first.value)


def test_the_manifest_says_what_the_vectors_are(tmp_path):
    training = bank(tmp_path)
    net, similarity = described(training)
    similarity(pictures(1))
    (folder,) = tmp_path.glob("linear-none-*")
    assert json.loads((folder / "manifest.json").read_text()) == {
        "source": "train/",
        "descriptor": "linear",
        "weights": Identity.of(net, "linear").weights,
        "preprocessing": "none",
        "bank": training.digest(),
        "count": 70,
        "dimension": 5,
        "block": 16,
    }
    kept = np.load(folder / "vectors.npy", mmap_mode="r")  # a file that others read too
    assert kept.shape == (70, 5) and kept.dtype == np.float16


def stored_by(cache):
    """All vectors of a bank."""
    training = bank(cache)
    net, similarity = described(training)
    stored = training.stored(similarity)
    assert stored.missing() == [0, 1, 2, 3, 4]
    for block in stored.missing():
        stored.write(block, training.describe(similarity, stored.rows(block), torch.device("cpu"), torch.float32))
    assert stored.missing() == [] and net.seen == 70
    return stored


def test_large_ones_are_searched_where_they_lie_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("amg.bank.bank.HELD", 0)
    training = bank(tmp_path)
    _, similarity = described(training)
    x = pictures(4, seed=1)
    expected = described(bank(None))[1](x)
    found = similarity(x)
    close(found.value, expected.value)
    assert torch.equal(found.index, expected.index)
    kept = training.vectors(similarity, torch.device("cpu"), torch.float32)
    assert kept.dtype == torch.float16
    (file,) = tmp_path.rglob("vectors.npy")
    values = np.load(file, mmap_mode="r+")
    values[3] = 7.0
    values.flush()
    assert (kept[3] == 7).all()  # no copy was made


def test_only_missing_blocks_are_computed(tmp_path):
    x = pictures(2, seed=1)
    expected = described(bank(None))[1](x)
    stored = stored_by(tmp_path)
    done = np.fromfile(stored.folder / "vectors.done", np.uint8)
    done[[1, 4]] = 0
    done.tofile(stored.folder / "vectors.done")
    assert stored.missing() == [1, 4]
    net, similarity = described(bank(tmp_path))
    close(similarity(x).value, expected.value)
    assert net.seen == 16 + 6 + 2


@pytest.mark.parametrize("other, count", [({"n": 71}, 71), ({"seed": 1}, 70)])
def test_vectors_of_another_bank_are_refused_in_a_line_that_says_both_sides(tmp_path, other, count):
    described(bank(tmp_path))[1](pictures(1))
    with pytest.raises(ValueError, match=rf"70 images of train/, this run has {count} of train/: delete") as error:
        described(bank(tmp_path, **other))
    assert str(error.value).startswith("data.cache: ") and "\n" not in str(error.value)


def test_other_weights_and_another_preprocessing_have_places_of_their_own(tmp_path):
    described(bank(tmp_path))[1](pictures(1))
    net, similarity = described(bank(tmp_path), seed=1)
    similarity(pictures(1))
    assert net.seen == 71
    net = Counting()
    identity = Identity.of(net, "linear", "halved")
    DescriptorSimilarity(bank(tmp_path), net, lambda x: x / 2, identity=identity)(pictures(1))
    assert [path.name[:-9] for path in sorted(tmp_path.iterdir())] == ["linear-halved", "linear-none", "linear-none"]


def test_a_large_bank_without_the_vectors_that_are_asked_for_says_which_it_has(tmp_path, monkeypatch):
    described(bank(tmp_path))[1](pictures(1))
    monkeypatch.setattr("amg.bank.bank.VERIFIED", 50)
    described(bank(tmp_path))[1](pictures(1))
    with pytest.raises(ValueError, match=r"lacks the vectors of linear-\S+ \(it has linear-\S+\): bank.embed"):
        described(bank(tmp_path), seed=1)[1](pictures(1))


def test_the_automatic_place_keeps_everything_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("AMG_CACHE", str(tmp_path))
    for one in (bank("auto"), bank("auto"), bank("auto", n=60), bank("auto").subset(torch.arange(50))):
        described(one)[1](pictures(1))
    described(bank("auto"), seed=1)[1](pictures(1))
    assert len(list((tmp_path / "vectors").iterdir())) == 4


def test_no_cache_no_identity_or_double_precision_leaves_the_disk_alone(tmp_path):
    described(bank(None))[1](pictures(1))
    DescriptorSimilarity(bank(tmp_path), Counting())(pictures(1))
    _, similarity = described(bank(tmp_path))
    exact = similarity.vectors(torch.zeros(1, dtype=torch.float64))
    assert list(tmp_path.iterdir()) == []
    close(similarity.vectors(torch.zeros(1)), exact.float())


def test_a_file_cut_short_is_named(tmp_path):
    file = stored_by(tmp_path).folder / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="vectors.npy cannot be read .* delete its folder"):
        described(bank(tmp_path))[1](pictures(1))
    file.with_name("manifest.json").write_text('{"source"')
    with pytest.raises(ValueError, match="manifest.json is no readable manifest: delete"):
        described(bank(tmp_path))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="data.cache=null.*/file/linear-none"):
        described(bank(tmp_path / "file"))[1](pictures(1))


def test_a_disk_that_is_too_small_is_told_before_anything_is_kept(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 699, before[1]))  # 700 bytes of vectors
    try:
        with pytest.raises(OSError, match="data.cache=null.*linear-none"):
            described(bank(tmp_path))[1](pictures(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("manifest.json"))
    net, similarity = described(bank(tmp_path))
    similarity(pictures(1))
    assert net.seen == 71


def test_without_a_home_folder_the_automatic_place_is_refused_with_the_ways_on(monkeypatch):
    monkeypatch.delenv("AMG_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the container does not know
    with pytest.raises(ValueError, match="no home folder: set AMG_CACHE to a folder, or data.cache=null"):
        described(bank("auto"))


def test_weights_decide_the_identity():
    assert Identity.of(Counting(), "a") == Identity.of(Counting(), "a")
    assert Identity.of(Counting(), "a") != Identity.of(Counting(seed=1), "a")


SLOW = """
import sys, time, torch
sys.path[:0] = {paths!r}
from test_vectors import Counting, bank, described, module
module.BLOCK = 16
net, similarity = described(bank(sys.argv[1]))
similarity.preprocess = lambda x: time.sleep(0.2) or x
similarity(torch.zeros(1, 3, 4, 4))
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(paths=paths), str(tmp_path)], env=os.environ)
    while not (done := list(tmp_path.rglob("*.done"))) or np.fromfile(done[0], np.uint8).sum() < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(StoredVectors(bank(tmp_path), Identity.of(Counting(), "linear")).missing())
    assert 1 <= left <= 3
    net, similarity = described(bank(tmp_path))
    expected = described(bank(None))[1](pictures(2, 1))
    close(similarity(pictures(2, 1)).value, expected.value)
    assert net.seen < 70
