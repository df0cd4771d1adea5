"""PDQ: a bank of 32 bytes an image, as judge and filter."""

import numpy as np
import pdqhash
import pytest
import torch

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance
from amg.similarity.copies import find_copies
from amg.similarity.pdq import PDQ
from amg.thresholds import Always
from amg.worlds.drawings import training_images


@pytest.fixture(scope="module")
def bank():
    return TrainingBank.from_tensors(training_images(64, n=30).images[:40])


def test_similarity_is_one_less_twice_the_share_of_bits_that_differ(bank):
    judge = PDQ(bank)
    images = (bank.pictures[:3] + 0.3 * torch.randn(3, 3, 64, 64)).clamp(-1, 1)

    def hashed(image):
        pixels = image.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return pdqhash.compute(np.ascontiguousarray(pixels))[0]

    distances = np.array([[(hashed(a) != hashed(b)).sum() for b in bank.pictures[:]] for a in images])
    value, index = judge(images)
    assert index.tolist() == distances.argmin(1).tolist()
    np.testing.assert_allclose(value.numpy(), 1 - 2 * distances.min(1) / 256, atol=1e-6)


def test_hashes_are_shared_without_the_images(bank, tmp_path):
    file = PDQ(bank).save(tmp_path / "hashes")
    assert file.stat().st_size == 128 + 32 * len(bank)
    shared = PDQ(hashes=file)
    assert torch.equal(shared(bank.pictures[:9]).value, PDQ(bank)(bank.pictures[:9]).value)
    novel = torch.rand(1, 3, 64, 64) * 2 - 1
    assert [one.copy for one in find_copies(torch.cat([bank.pictures[3:5], novel]), None, shared)] == [
        True,
        True,
        False,
    ]


def test_mistakes_are_told(bank, tmp_path):
    with pytest.raises(ValueError, match="PDQ has no gradient for G_sim: take it as judge"):
        AntiMemorizationGuidance(PDQ(bank), Always(), c3=1.0)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.npy holds no hashes"):
        PDQ(hashes=tmp_path / "bad.npy")
    with pytest.raises(ValueError, match="similarity.hashes: no file"):
        PDQ(hashes=tmp_path / "none.npy")
    np.save(tmp_path / "two.npy", np.zeros((2, 32), np.uint8))
    with pytest.raises(ValueError, match=f"holds 2 hashes, the bank {len(bank)} images"):
        PDQ(bank, hashes=tmp_path / "two.npy")
    with pytest.raises(ValueError, match="needs a bank, or hashes="):
        PDQ()
