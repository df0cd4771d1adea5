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
from amg.bank.dedupe import subset
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
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 16)


def test_a_second_bank_of_the_same_pictures_computes_nothing_and_answers_alike(tmp_path):
    x = pictures(3, seed=1)
    net, similarity = described(bank(tmp_path))
    first = similarity(x)
    assert net.seen == 70 + 3
    net, similarity = described(bank(tmp_path))
    again = similarity(x)
    assert net.seen == 3
    torch.testing.assert_close(first.value, again.value)
    assert torch.equal(first.index, again.index)
    _, plain = described(bank(None))
    torch.testing.assert_close(plain(x).value, first.value)


def test_the_manifest_says_what_the_shards_are(tmp_path):
    training = bank(tmp_path)
    net, similarity = described(training)
    similarity(pictures(1))
    folder = tmp_path / "linear-none"
    assert json.loads((folder / "manifest.json").read_text()) == {
        "source": "train/",
        "descriptor": "linear",
        "weights": Identity.of(net, "linear").weights,
        "preprocessing": "none",
        "bank": training.digest(),
        "count": 70,
        "dtype": "float32",
        "shard": 16,
        "dimension": 5,
    }
    assert [file.name for file in folder.glob("*.npy")] == ["vectors.npy"]  # the shards are gone
    assert np.load(folder / "vectors.npy").shape == (70, 5)


def shards_of(cache):
    """All shards of a bank, as a run that was killed at its very end leaves them."""
    training = bank(cache)
    net, similarity = described(training)
    stored = training.stored(similarity)
    for shard in stored.missing():
        stored.write(shard, training.describe(similarity, stored.rows(shard), torch.device("cpu"), torch.float32))
    sizes = [np.load(file).shape for file in sorted(stored.folder.glob("*.npy"))]
    assert sizes == [(16, 5)] * 4 + [(6, 5)] and net.seen == 70
    return stored


def test_vectors_are_searched_where_they_lie_on_disk(tmp_path):
    training = bank(tmp_path)
    _, similarity = described(training)
    similarity(pictures(1))
    kept = training.vectors(similarity, torch.device("cpu"), torch.float32)
    file = np.load(tmp_path / "linear-none" / "vectors.npy", mmap_mode="r+")
    np.testing.assert_array_equal(kept.numpy(), file)
    file[3] = 7.0
    file.flush()
    assert (kept[3] == 7).all()  # no copy was made


def test_only_missing_shards_are_computed(tmp_path):
    x = pictures(2, seed=1)
    expected = described(bank(None))[1](x)
    stored = shards_of(tmp_path)
    for shard in (1, 4):
        (stored.folder / f"{shard:05d}.npy").unlink()
    assert stored.missing() == [1, 4]
    net, similarity = described(bank(tmp_path))
    torch.testing.assert_close(similarity(x).value, expected.value)
    assert net.seen == 16 + 6 + 2


@pytest.mark.parametrize(
    "other, said",
    [
        ({"n": 71}, r"bank \w+ there, \w+ here; count 70 there, 71 here; delete that folder, or name another by data"),
        ({"seed": 1}, r"bank \w+ there, \w+ here; delete"),
    ],
)
def test_vectors_of_another_bank_are_refused_in_a_line_that_says_both_sides(tmp_path, other, said):
    described(bank(tmp_path))[1](pictures(1))
    with pytest.raises(ValueError, match=said) as error:
        described(bank(tmp_path, **other))
    assert str(error.value).startswith("data.cache: ") and "\n" not in str(error.value)


def test_other_weights_under_the_same_name_are_refused_and_another_preprocessing_has_a_place_of_its_own(tmp_path):
    described(bank(tmp_path))[1](pictures(1))
    with pytest.raises(ValueError, match=r"weights \w{32} there, \w{32} here; delete"):
        described(bank(tmp_path), seed=1)
    net = Counting()
    identity = Identity.of(net, "linear", "halved")
    DescriptorSimilarity(bank(tmp_path), net, lambda x: x / 2, identity=identity)(pictures(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear-halved", "linear-none"]


def test_the_automatic_place_keeps_everything_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("AMG_CACHE", str(tmp_path))
    for one in (bank("auto"), bank("auto"), bank("auto", n=60), subset(bank("auto"), torch.arange(50))):
        described(one)[1](pictures(1))
    described(bank("auto"), seed=1)[1](pictures(1))
    assert len(list((tmp_path / "vectors").iterdir())) == 4


def test_no_cache_no_identity_or_double_precision_leaves_the_disk_alone(tmp_path):
    described(bank(None))[1](pictures(1))
    DescriptorSimilarity(bank(tmp_path), Counting())(pictures(1))
    _, similarity = described(bank(tmp_path))
    exact = similarity.vectors(torch.zeros(1, dtype=torch.float64))
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(similarity.vectors(torch.zeros(1)), exact.float())


def test_a_shard_cut_short_or_of_another_size_is_named(tmp_path):
    file = shards_of(tmp_path).folder / "00002.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="00002.npy cannot be read .* delete it to have it made anew"):
        described(bank(tmp_path))[1](pictures(1))
    np.save(file, np.zeros((16, 4), np.float32))
    with pytest.raises(ValueError, match=r"00002.npy holds float32 \(16, 4\) where its manifest says .*\(16, 5\)"):
        described(bank(tmp_path))[1](pictures(1))
    file.unlink()
    described(bank(tmp_path))[1](pictures(1))  # made anew, and joined
    joined = tmp_path / "linear-none" / "vectors.npy"
    joined.write_bytes(joined.read_bytes()[:-8])
    with pytest.raises(ValueError, match="vectors.npy cannot be read .* delete it to have it made anew"):
        described(bank(tmp_path))[1](pictures(1))
    (tmp_path / "linear-none" / "manifest.json").write_text('{"source"')
    with pytest.raises(ValueError, match="manifest.json is no readable manifest: delete"):
        described(bank(tmp_path))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="data.cache=null.*/file/linear-none"):
        described(bank(tmp_path / "file"))[1](pictures(1))


@pytest.mark.parametrize("room", [440, 600])  # no shard; all shards, but not as one file
def test_a_full_disk_is_named_and_leaves_no_half_of_a_file(tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="data.cache=null.*linear-none"):
            described(bank(tmp_path))[1](pictures(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*/.*")) and not list(tmp_path.glob("*/vectors.npy"))
    described(bank(tmp_path))[1](pictures(1))


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
module.SHARD = 16
net, similarity = described(bank(sys.argv[1]))
similarity.preprocess = lambda x: time.sleep(0.2) or x
similarity(torch.zeros(1, 3, 4, 4))
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(paths=paths), str(tmp_path)], env=os.environ)
    folder = tmp_path / "linear-none"
    while len(list(folder.glob("*.npy"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(StoredVectors(bank(tmp_path), Identity.of(Counting(), "linear")).missing())
    assert 1 <= left <= 3
    net, similarity = described(bank(tmp_path))
    expected = described(bank(None))[1](pictures(2, 1))
    torch.testing.assert_close(similarity(pictures(2, 1)).value, expected.value)
    assert net.seen < 70
