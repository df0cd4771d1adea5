"""The bank: exact search against brute force, merged repeats, what it reads and what it refuses."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg.bank import TrainingBank
from amg.bank.exact import nearest


def pictures(n: int, seed: int = 0, size: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def brute_force(queries: torch.Tensor, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    differences = queries.double().flatten(1)[:, None] - keys.double().flatten(1)[None]
    return differences.square().sum(2).sqrt().topk(k, largest=False)


@given(n=st.integers(1, 40), b=st.integers(1, 5), chunk=st.integers(1, 50), seed=st.integers(0, 99), data=st.data())
def test_search_equals_brute_force_whatever_the_chunk(n, b, chunk, seed, data):
    k = data.draw(st.integers(1, n))
    keys, queries = pictures(n, seed).double().flatten(1), pictures(b, seed + 100).double().flatten(1)
    distances, indices = nearest(queries, keys, keys.square().sum(1), k, chunk=chunk)
    expected, places = brute_force(queries, keys, k)
    assert torch.allclose(distances, expected, atol=1e-9) and torch.equal(indices, places)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)]
)
def test_search_takes_every_float_and_answers_in_it(dtype, tolerance):
    bank, queries = TrainingBank.from_tensors(pictures(50)), pictures(5, seed=1).to(dtype)
    distances, indices = bank.search(queries, 7)
    expected, places = brute_force(queries, bank.pictures[:], 7)
    assert distances.dtype == dtype and indices.dtype == torch.int64
    assert torch.allclose(distances.double(), expected, rtol=tolerance)
    assert torch.equal(indices, places)


def test_a_training_picture_finds_itself_first():
    bank = TrainingBank.from_tensors(pictures(50))
    distances, indices = bank.search(bank.pictures[:], 3)
    assert indices[:, 0].tolist() == list(range(50))
    assert distances[:, 0].max() < 1e-2 and distances[:, 1].min() > 1  # root of float32 cancellation: not exactly 0
    assert (distances.diff(dim=1) >= 0).all()


def test_all_pictures_can_be_asked_for():
    bank = TrainingBank.from_tensors(pictures(9))
    assert sorted(bank.search(pictures(1, seed=1), 9)[1][0].tolist()) == list(range(9))


@pytest.mark.parametrize("k", [0, 10, -1])
def test_k_outside_the_bank_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must lie in 1 … 9 .* got {k}"):
        TrainingBank.from_tensors(pictures(9)).search(pictures(1, seed=1), k)


def test_queries_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"queries are \(3, 8, 8\) but the bank's images \(3, 4, 4\).*size=\(8, 8\)"):
        TrainingBank.from_tensors(pictures(9)).search(pictures(1, size=8))


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(2, 1, 4, 4), r"must be \(N, 3, H, W\)"),
        (torch.zeros(3, 4, 4), r"must be \(N, 3, H, W\)"),
        (torch.zeros(0, 3, 4, 4), "N > 0"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "must be floats .* or uint8, got torch.int64"),
        (torch.full((2, 3, 4, 4), 255.0), r"must lie in \[-1, 1\], got \[255.00, 255.00\]"),
        (torch.full((2, 3, 4, 4), -2.0), r"must lie in \[-1, 1\]"),
        (torch.full((2, 3, 4, 4), torch.nan), "hold NaN"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        TrainingBank.from_tensors(images)


def test_one_caption_per_picture_is_asked_for():
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        TrainingBank.from_tensors(pictures(3), ["a", "b"])


def test_repeats_are_merged_with_their_number_and_captions_most_frequent_first():
    a, b = pictures(2)
    bank = TrainingBank.from_tensors(torch.stack([a, b, a, a, b]), ["rare", "b", "common", "common", ""])
    assert len(bank) == 2 and torch.equal(bank.pictures[:], torch.stack([a, b]))
    assert bank.multiplicity.tolist() == [3, 2]
    assert bank.all_captions == [("common", "rare"), ("b",)]
    assert bank.captions == ["common", "b"]


def test_a_list_of_captions_counts_as_many_occurrences():
    a, b, c = pictures(3)
    bank = TrainingBank.from_tensors(torch.stack([a, b, a, c]), [["x", "y", ""], None, "y", []])
    assert bank.all_captions == [("y", "x"), (), ()] and bank.multiplicity.tolist() == [4, 1, 1]


@pytest.mark.parametrize("caption, kind", [(3, "int"), (["x", 1.5], "float"), (b"x", "bytes")])
def test_captions_that_are_no_text_are_refused(caption, kind):
    if kind == "bytes":
        caption = [caption]
    with pytest.raises(ValueError, match=rf"captions of the bank must be text, row 1 has .* \({kind}\)"):
        TrainingBank.from_tensors(pictures(2), ["a", caption])


def test_building_a_bank_of_distinct_images_copies_none():
    images = pictures(50)
    assert TrainingBank.from_tensors(images).pictures[:].data_ptr() == images.data_ptr()


def test_pictures_without_captions_have_empty_ones():
    bank = TrainingBank.from_tensors(pictures(2))
    assert bank.captions == ["", ""] and bank.all_captions == [(), ()]


def test_digest_names_pictures_captions_and_multiplicity():
    images = pictures(3)
    same = TrainingBank.from_tensors(images, ["a", "b", "c"]).digest()
    assert TrainingBank.from_tensors(images.clone(), ["a", "b", "c"]).digest() == same
    others = [
        TrainingBank.from_tensors(images, ["a", "b", "d"]),
        TrainingBank.from_tensors(images[:2], ["a", "b"]),
        TrainingBank.from_tensors(images * 0.5, ["a", "b", "c"]),
        TrainingBank.from_tensors(torch.cat([images, images[:1]]), ["a", "b", "c", "a"]),
    ]
    assert same not in {other.digest() for other in others}


def test_a_bank_survives_pickling():
    bank, x = TrainingBank.from_tensors(pictures(9), list("abcdefghi")), pictures(2, seed=1)
    twin = pickle.loads(pickle.dumps(bank))
    assert twin.digest() == bank.digest()
    assert torch.equal(twin.search(x, 3)[1], bank.search(x, 3)[1])


def test_images_of_eight_bits_stay_so_and_are_what_their_floats_are():
    eight = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    eight[3] = eight[1]
    bank, floats = TrainingBank.from_tensors(eight), TrainingBank.from_tensors(eight.float() / 127.5 - 1)
    assert len(bank) == len(floats) == 4 and bank.multiplicity.tolist() == [1, 2, 1, 1]
    torch.testing.assert_close(bank.pictures[:], floats.pictures[:])
    assert bank.pixels().dtype == torch.uint8
    queries = floats.pictures[[2, 0]] * 0.9
    for one, other in zip(bank.search(queries, 2), floats.search(queries, 2), strict=True):
        torch.testing.assert_close(one, other)
