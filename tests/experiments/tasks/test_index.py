"""Exact and FAISS indexes of descriptors, and similarities that search through them."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from amg.bank import TrainingBank
from amg.bank.exact import ExactIndex
from amg.bank.faiss import FaissIndex
from amg.similarity import DescriptorSimilarity, NormalizedL2, PCASimilarity
from experiments.cli.main import main
from experiments.config import build


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_faiss_candidates_are_ranked_exactly():
    vectors = F.normalize(torch.randn(3000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    queries = vectors[:20].double() + 0.05
    products, index = FaissIndex(vectors.double(), candidates=50, lists=20, probes=20).search(queries, 5)
    expected = (queries @ vectors.double().T).topk(5)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(products, expected.values)
    few, found = FaissIndex(vectors, candidates=50, lists=20, probes=4).search(vectors[:200])
    assert (found[:, 0] == torch.arange(200)).all()  # a picture lies in its own cell
    torch.testing.assert_close(few[:, 0], torch.ones(200))


def test_faiss_refuses_more_neighbours_than_vectors():
    with pytest.raises(ValueError, match="1 … 3"):
        FaissIndex(torch.eye(3)).search(torch.eye(3), 4)


def test_cells_that_hold_too_few_are_made_up_for_exactly():
    vectors = F.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    products, index = FaissIndex(vectors, lists=10, probes=1).search(vectors[:9] + 0.1, 300)
    expected = ((vectors[:9] + 0.1) @ vectors.T).topk(300)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(products, expected.values)


def test_the_exact_index_equals_brute_force_and_knows_its_size():
    vectors, queries = torch.randn(30, 6), torch.randn(4, 6)
    products, index = ExactIndex(vectors).search(queries, 30)
    order = (queries @ vectors.T).argsort(1, descending=True)
    assert torch.equal(index, order) and torch.equal(ExactIndex(vectors).search(queries)[1], order[:, :1])
    torch.testing.assert_close(products, (queries @ vectors.T).gather(1, order))
    with pytest.raises(ValueError, match="1 … 30"):
        ExactIndex(vectors).search(queries, 31)


@pytest.mark.parametrize("chunk", [1, 7, 10, 30, 31])
def test_chunks_of_vectors_change_nothing(chunk):
    vectors, queries = torch.randn(30, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    for k in (1, 8, 30):
        products, index = ExactIndex(vectors, chunk).search(queries, k)
        expected = (queries @ vectors.T).topk(k, dim=1)
        assert torch.equal(index, expected.indices)
        torch.testing.assert_close(products, expected.values)


def test_a_similarity_by_faiss_with_all_probes_is_the_exact_one_gradient_included():
    bank = TrainingBank.from_tensors(pictures(2000))
    x = pictures(16, seed=1).requires_grad_()
    embed = PCASimilarity(bank, directions=32).embed
    exact = DescriptorSimilarity(bank, embed)
    faiss = DescriptorSimilarity(bank, embed, index=partial(FaissIndex, lists=40, probes=40))
    (a, i), (b, j) = exact(x), faiss(x)
    assert torch.equal(i, j)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), x)[0] for value in (a, b)))
    assert torch.equal(exact.neighbours(x, 50), faiss.neighbours(x, 50))
    few = DescriptorSimilarity(bank, embed, index=partial(FaissIndex, lists=40, probes=4))(x)
    assert (few.value <= a).all() and (few.index == i).float().mean() >= 0.5


def test_neighbours_come_nearest_first_and_begin_with_the_match():
    bank, x = TrainingBank.from_tensors(pictures(60)), pictures(5, seed=1)
    for similarity in (PCASimilarity(bank, 16), NormalizedL2(bank)):
        near = similarity.neighbours(x, 60)
        assert torch.equal(near[:, 0], similarity(x).index)
        assert (near.sort(1).values == torch.arange(60)).all()
    pixels = torch.cdist(x.double().flatten(1), bank.images.double().flatten(1))
    assert torch.equal(NormalizedL2(bank).neighbours(x.double(), 60), pixels.argsort(1))


def test_an_unknown_index_is_refused():
    with pytest.raises(ValueError, match="similarity.index: unknown 'hnsw'; choose exact or faiss"):
        PCASimilarity(TrainingBank.from_tensors(pictures(9)), index="hnsw")


RUN = ["trainer=cpu", "sampler.steps=3", "n_samples=4", "metrics.extractor=none", "similarity=pca"]


@pytest.mark.slow
def test_faiss_is_chosen_by_a_key_and_changes_no_small_run(tmp_path, monkeypatch):
    from experiments.run import records

    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "output_dir=exact"]) == 0
    assert main([*RUN, "output_dir=faiss", "similarity.index=faiss"]) == 0
    exact, faiss = records.read("exact"), records.read("faiss")
    assert list(exact.similarity) == pytest.approx(list(faiss.similarity), abs=1e-4)
    assert list(exact.nearest_index) == list(faiss.nearest_index)


def test_missing_faiss_is_told_in_a_line_before_anything_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)  # as where it is not installed
    build._world.cache_clear()
    assert main([*RUN, "output_dir=out", "similarity.index=faiss"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == (
        "error: similarity: FAISS is not installed: pip install faiss-cpu, or search exactly (similarity.index=exact)"
    )
    assert not (tmp_path / "out").exists()
