"""Exact and FAISS indexes of descriptors, and similarities that search through them."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from amg.bank import TrainingBank
from amg.bank.exact import ExactIndex
from amg.bank.faiss import FaissIndex, interval, near
from amg.bank.remote import RemoteIndex
from amg.bank.vectors import Identity
from amg.similarity import DescriptorSimilarity, NormalizedL2, PCASimilarity
from experiments.cli.main import main
from experiments.config import build


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vectors_and_queries(cosine: float, n: int = 10_000, d: int = 512, b: int = 100) -> tuple[torch.Tensor, ...]:
    """Clustered vectors, and queries at a cosine to one of them each."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    centres = unit(n // 50, d)[torch.randint(n // 50, (n,), generator=generator)]
    near = 0.45 + 0.35 * torch.rand(n, 1, generator=generator)
    vectors = F.normalize(near * centres + (1 - near**2).sqrt() * unit(n, d), dim=1)
    rows = torch.randint(n, (b,), generator=generator)
    other = unit(b, d)
    other = F.normalize(other - (other * vectors[rows]).sum(1, keepdim=True) * vectors[rows], dim=1)
    return vectors, cosine * vectors[rows] + (1 - cosine**2) ** 0.5 * other, rows


@pytest.fixture(scope="module")
def clustered():
    vectors, *_ = vectors_and_queries(0.5)
    return FaissIndex(vectors, exact_below=0)


@pytest.mark.parametrize("cosine", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
def test_faiss_finds_copies_at_every_cosine_at_which_guidance_works(clustered, cosine):
    vectors, queries, rows = vectors_and_queries(cosine)
    products, index = clustered.search(queries)
    expected = (queries @ vectors.T).max(1)
    assert (index[:, 0] == expected.indices).float().mean() >= 0.99
    assert (index[:, 0] == rows).float().mean() >= 0.99
    torch.testing.assert_close(products[:, 0], (queries * vectors[index[:, 0]]).sum(1))


@pytest.mark.parametrize("d, codes", [(5, 6), (33, 34), (128, 64), (129, 44), (512, 64), (515, 66), (1024, 128)])
def test_faiss_takes_vectors_of_every_dimension(d, codes):
    """Dimensions that do not divide are padded; candidates are ranked exactly, in the queries' precision."""
    vectors = F.normalize(torch.randn(700, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    index = FaissIndex(vectors, exact_below=0, candidates=700)
    assert index.codes == codes
    products, places = index.search(vectors[:20] + 0.01, 5)
    expected = ((vectors[:20] + 0.01) @ vectors.T).topk(5)
    assert torch.equal(places, expected.indices)
    torch.testing.assert_close(products, expected.values)


def test_few_vectors_are_searched_exactly_and_more_neighbours_than_vectors_refused():
    vectors, queries = torch.randn(50, 6), torch.randn(4, 6)
    found = FaissIndex(vectors).search(queries, 50)
    torch.testing.assert_close(found, ExactIndex(vectors).search(queries, 50))
    for index in (FaissIndex(vectors), FaissIndex(torch.randn(700, 6), exact_below=0)):
        with pytest.raises(ValueError, match=f"k must lie in 1 … {len(index)}"):
            index.search(queries, len(index) + 1)


def test_codes_are_made_once_and_again_where_they_do_not_fit(tmp_path, monkeypatch):
    file, vectors = tmp_path / "codes.faiss", torch.randn(700, 16, generator=torch.Generator().manual_seed(0))
    options = {"exact_below": 0, "candidates": 128}
    first = FaissIndex(vectors, file, **options).search(vectors[:9], 3)
    with monkeypatch.context() as patch:
        patch.setattr(FaissIndex, "_make", lambda *_: pytest.fail("made again"))
        torch.testing.assert_close(first, FaissIndex(vectors, file, **options).search(vectors[:9], 3))
    assert FaissIndex(vectors[:650], file, **options)._index.ntotal == 650  # of other vectors
    assert FaissIndex(vectors, file, state="another bank", **options)._index.ntotal == 700
    file.write_bytes(file.read_bytes()[:-100])
    again = FaissIndex(vectors, file, **options).search(vectors[:9], 3)
    torch.testing.assert_close(first, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.faiss", "index.json"]


def test_recall_is_measured_when_the_codes_are_made_and_kept_with_them(tmp_path):
    vectors, *_ = vectors_and_queries(0.5, n=3000)
    file = tmp_path / "codes.faiss"
    index = FaissIndex(vectors, file, exact_below=0)
    assert list(index.recall) == [0.4, 0.5, 0.7, 0.9]
    assert all(low <= value <= high and value >= 0.99 for value, low, high in index.recall.values())
    assert FaissIndex(vectors, file, exact_below=0).recall == index.recall
    assert interval(0, 256)[1:] == pytest.approx((0, 0.01479), abs=1e-5)  # Wilson's, by hand


def test_an_index_that_loses_copies_is_made_finer_and_what_it_still_loses_is_warned_of(monkeypatch):
    vectors, *_ = vectors_and_queries(0.5, n=3000)
    monkeypatch.setattr("amg.bank.faiss.ENOUGH", 1.01)
    with pytest.warns(UserWarning, match=r"the index finds \d.\d+ at cosine 0.4, .*: index=exact finds all"):
        index = FaissIndex(vectors, exact_below=0)
    assert index.codes == 256 and index.candidates == 512
    queries = near(vectors, 0.9, 256)
    found = index.search(queries)[1] == ExactIndex(vectors).search(queries)[1]
    assert found.float().mean().item() == pytest.approx(index.recall[0.9][0])


def test_queries_lie_at_their_cosine():
    vectors = F.normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    queries = near(vectors, 0.7, 50)
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(50))
    torch.testing.assert_close((queries @ vectors.T).amax(1), torch.full((50,), 0.7), atol=1e-4, rtol=0)


def test_numbers_that_are_no_answer_are_never_found():
    vectors = F.normalize(torch.randn(700, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    for index in (
        ExactIndex(vectors, dead=[3, 8]),
        ExactIndex(vectors.half(), dead=[3, 8], coarse=True, chunk=100),
        FaissIndex(vectors, exact_below=0, candidates=700, dead=[3, 8]),
    ):
        products, found = index.search(vectors[:10], 4)
        expected = (vectors[:10] @ vectors.T).index_fill(1, torch.tensor([3, 8]), -2).topk(4)
        assert torch.equal(found, expected.indices)
        torch.testing.assert_close(products, expected.values, atol=2e-3, rtol=0)


def test_codes_are_kept_beside_the_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr("amg.similarity.descriptor.SCAN_FROM", 500)
    monkeypatch.setattr(FaissIndex.__init__, "__defaults__", (None, None, None, 500, (), None, 0))
    bank = TrainingBank.from_tensors(pictures(600), cache=tmp_path)
    identity = Identity("pixels", "none")
    similarity = DescriptorSimilarity(bank, lambda x: x.flatten(1), identity=identity)  # index="auto"
    assert similarity(bank.pictures[:50]).index.tolist() == [*range(50)]
    assert similarity.nearest(bank.pictures[:50])[1].flatten().tolist() == [*range(50)]
    (folder,) = tmp_path.glob("pixels-none-*")
    assert {"codes.faiss", "index.json", "manifest.json", "vectors.npy"} <= {path.name for path in folder.iterdir()}


def test_the_exact_index_equals_brute_force_and_knows_its_size():
    vectors, queries = torch.randn(30, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
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
        products, index = ExactIndex(vectors, chunk=chunk).search(queries, k)
        expected = (queries @ vectors.T).topk(k, dim=1)
        assert torch.equal(index, expected.indices)
        torch.testing.assert_close(products, expected.values)


def test_a_similarity_by_faiss_with_all_candidates_is_the_exact_one_gradient_included():
    bank = TrainingBank.from_tensors(pictures(2000))
    x = pictures(16, seed=1).double().requires_grad_()  # float32 orders near ties by chance
    embed = PCASimilarity(bank, directions=32).embed
    exact = DescriptorSimilarity(bank, embed)
    faiss = DescriptorSimilarity(bank, embed, index=partial(FaissIndex, exact_below=0, candidates=2000))
    (a, i), (b, j) = exact(x), faiss(x)
    assert torch.equal(i, j)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), x)[0] for value in (a, b)))
    assert torch.equal(exact.neighbours(x, 50), faiss.neighbours(x, 50))
    few = DescriptorSimilarity(bank, embed, index=partial(FaissIndex, exact_below=0, candidates=4))(x)
    assert (few.value <= a + 1e-9).all() and (few.index == i).float().mean() >= 0.5


def test_neighbours_come_nearest_first_and_begin_with_the_match():
    bank, x = TrainingBank.from_tensors(pictures(60)), pictures(5, seed=1)
    for similarity in (PCASimilarity(bank, 16), NormalizedL2(bank)):
        near = similarity.neighbours(x, 60)
        assert torch.equal(near[:, 0], similarity(x).index)
        assert (near.sort(1).values == torch.arange(60)).all()
    pixels = torch.cdist(x.double().flatten(1), bank.pictures[:].double().flatten(1))
    assert torch.equal(NormalizedL2(bank).neighbours(x.double(), 60), pixels.argsort(1))


def test_an_unknown_index_is_refused():
    with pytest.raises(ValueError, match="similarity.index: unknown 'hnsw'; choose auto, exact, faiss, milvus"):
        PCASimilarity(TrainingBank.from_tensors(pictures(9)), index="hnsw")


@pytest.mark.parametrize("url", ["milvus://{folder}/a.db/bank", "qdrant://:memory:/bank"])
def test_a_vector_data_base_answers_as_exact_search_and_is_filled_once(tmp_path, url):
    vectors = F.normalize(torch.randn(1500, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    index = RemoteIndex(vectors[:1200], url.format(folder=tmp_path), dead=[7])
    if "memory" not in url:
        index = RemoteIndex(vectors, url.format(folder=tmp_path), dead=[7])  # grown
    expected = ExactIndex(index.vectors, dead=[7]).search(vectors[:20], 5)
    products, found = index.search(vectors[:20], 5)
    assert torch.equal(found, expected[1])
    torch.testing.assert_close(products, expected[0])


def test_what_is_no_data_base_is_told():
    for url in ("mongo://here/bank", "qdrant://bank"):
        with pytest.raises(ValueError, match=r"similarity.index: '.*' is no milvus://host:port/collection or qdrant"):
            RemoteIndex(torch.zeros(9, 4), url)


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
