"""Descriptor similarity (Eq. 9) and the PCA descriptor."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from amg.bank import TrainingBank
from amg.similarity import DescriptorSimilarity, PCASimilarity, PCAWhitening, PixelCorrelation, pca
from amg.similarity.pca import by_covariance, by_gram


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pca_whitening_has_zero_mean_and_identity_covariance_on_the_bank():
    bank = TrainingBank.from_tensors(pictures(80))
    vectors = PCAWhitening(bank, directions=20)(bank.pictures[:].double())
    assert vectors.shape == (80, 20)
    assert vectors.mean(0).abs().max() < 1e-12
    assert torch.allclose(vectors.T @ vectors / 80, torch.eye(20, dtype=torch.float64), atol=1e-10)


def test_both_ways_to_whiten_agree_up_to_sign():
    pixels = pictures(40).flatten(1).double()  # 40 pictures of 48 values
    mean = pixels.mean(0)
    gram, covariance = by_gram(pixels, mean, 12), by_covariance(pixels, mean, 12)
    signs = (gram * covariance).sum(0).sign()
    assert torch.allclose(gram, covariance * signs, atol=1e-9)


@pytest.mark.parametrize("n, size", [(30, 30), (90, 48)])
def test_the_smaller_matrix_is_decomposed(n, size, monkeypatch):
    sizes = []
    monkeypatch.setattr(torch.linalg, "eigh", lambda m, eigh=torch.linalg.eigh: sizes.append(len(m)) or eigh(m))
    monkeypatch.setattr(pca, "CHUNK", 7)
    bank = TrainingBank.from_tensors(pictures(n))
    vectors = PCAWhitening(bank, directions=64)(bank.pictures[:].double())
    assert sizes == [size] and vectors.shape == (n, min(n - 1, 48))
    assert torch.allclose(vectors.T @ vectors / n, torch.eye(vectors.shape[1], dtype=torch.float64), atol=1e-8)


def test_pca_keeps_the_directions_of_largest_variance():
    images = 0.01 * pictures(60)
    images[:, 1, 2, 3] = torch.linspace(-1, 1, 60)  # all but all of the variance in one pixel
    direction = PCAWhitening(TrainingBank.from_tensors(images), directions=1).whiten[:, 0]
    place = 1 * 16 + 2 * 4 + 3
    assert direction.abs().argmax() == place
    assert F.normalize(direction, dim=0)[place].abs() > 0.999


def test_pca_of_few_pictures_keeps_one_direction_less_than_pictures():
    bank = TrainingBank.from_tensors(pictures(5))
    assert PCAWhitening(bank, directions=64)(bank.pictures[:]).shape == (5, 4)


def test_pca_counts_repeats_once():
    images = pictures(30)
    repeated = torch.cat([images, images[:3].repeat(20, 1, 1, 1)])
    one, other = (PCAWhitening(TrainingBank.from_tensors(some), 8) for some in (images, repeated))
    torch.testing.assert_close(one.whiten, other.whiten)


def test_copies_have_cosine_1_and_find_themselves():
    bank = TrainingBank.from_tensors(pictures(40))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        value, index = PCASimilarity(bank, directions=16)(bank.pictures[:].to(dtype))
        assert value.dtype == dtype and (value - 1).abs().max() < tolerance
        assert index.tolist() == list(range(40))


def test_value_is_the_largest_cosine():
    bank, x = TrainingBank.from_tensors(pictures(40)), pictures(5, seed=1).double()
    similarity = PCASimilarity(bank, directions=16)
    whiten = similarity.embed
    cosines = F.cosine_similarity(whiten(x)[:, None], whiten(bank.pictures[:].double())[None], dim=2)
    assert torch.allclose(similarity(x).value, cosines.max(1).values, atol=1e-12)
    assert torch.equal(similarity(x).index, cosines.argmax(1))


def test_preprocessing_comes_before_the_embedding_on_both_sides():
    bank = TrainingBank.from_tensors(pictures(10))
    similarity = DescriptorSimilarity(bank, lambda x: x.flatten(1), preprocess=lambda x: F.avg_pool2d(x, 2))
    x = F.interpolate(F.avg_pool2d(bank.pictures[:], 2), scale_factor=2)  # other pictures, the same after preprocessing
    assert torch.allclose(similarity(x).value, torch.ones(10), atol=1e-6)


def test_vectors_of_the_bank_are_computed_once():
    rows = []

    def embed(x):
        rows.append(len(x))
        return x.flatten(1)

    similarity = DescriptorSimilarity(TrainingBank.from_tensors(pictures(100)), embed)
    first = similarity(pictures(2, seed=1))
    assert sum(rows) == 100 + 2
    assert torch.equal(similarity(pictures(2, seed=1)).value, first.value)
    assert sum(rows) == 100 + 2 + 2


def test_gradient_equals_finite_differences():
    bank, x = TrainingBank.from_tensors(pictures(40)), pictures(1, seed=1).double()
    similarity, h = PCASimilarity(bank, directions=16, norm_gradient=True), 1e-6
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(leaf).value.sum(), leaf)
    steps = h * torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape[1:])
    numeric = (similarity(x + steps).value - similarity(x - steps).value) / (2 * h)
    assert (gradient.flatten() - numeric).abs().max() < 1e-8
    assert numeric.abs().max() > 1e-3


def test_correlation_sees_through_tint_and_contrast():
    bank = TrainingBank.from_tensors(pictures(40))
    tint = torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    pale = 0.4 * bank.pictures[:8] + tint
    value, index = PixelCorrelation(bank)(pale)
    assert index.tolist() == [*range(8)]
    assert value.min() > 0.999  # but for MIN_VARIANCE
    assert PCASimilarity(bank, directions=16)(pale).value.min() < 0.9


def test_the_norm_is_held_fixed_in_the_gradient():
    bank, x = TrainingBank.from_tensors(pictures(40)), pictures(1, seed=1).double().requires_grad_()
    similarity = PCASimilarity(bank, directions=16)
    value, index = similarity(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    neighbour = F.normalize(similarity.embed(bank.pictures[index].double()), dim=1)
    by_hand = similarity.embed.whiten @ neighbour[0] / similarity.embed(x).norm()  # E is linear: ∇(E(x)ᵀ n̂) / ‖E(x)‖
    assert torch.allclose(gradient.flatten(), by_hand, atol=1e-12)


def test_the_gradient_survives_at_an_exact_copy_and_through_the_norm_it_does_not():
    bank = TrainingBank.from_tensors(pictures(40))

    def slope(**options):
        x = bank.pictures[:1].double().requires_grad_()
        (gradient,) = torch.autograd.grad(PCASimilarity(bank, 16, **options)(x).value.sum(), x)
        return gradient.norm().item()

    assert slope(norm_gradient=True) < 1e-10
    assert slope() > 0.1


def test_pictures_of_another_size_than_the_banks_are_refused_by_pca():
    bank = TrainingBank.from_tensors(torch.rand(5, 3, 8, 8))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\) but the bank's \(3, 8, 8\): .* size=\(16, 16\)"):
        PCASimilarity(bank, directions=3)(torch.rand(2, 3, 16, 16))
    wide = TrainingBank.from_tensors(torch.rand(5, 3, 4, 16))
    with pytest.raises(ValueError, match=r"\(3, 16, 4\) but the bank's \(3, 4, 16\): .* size=\(16, 4\)"):
        PCASimilarity(wide)(torch.rand(2, 3, 16, 4))  # as many values, another image


def test_banks_that_span_no_two_directions_are_refused_by_pca():
    """There σ would be NaN, or 1 for everything."""
    for n in (1, 2):
        with pytest.raises(ValueError, match=f"at least 3 distinct images, got {n}"):
            PCASimilarity(TrainingBank.from_tensors(torch.rand(n, 3, 8, 8)))
    start, way = torch.rand(2, 3, 8, 8) / 2
    line = TrainingBank.from_tensors(torch.stack([start + t * way for t in (0.0, 0.2, 0.5, 0.9)]))
    with pytest.raises(ValueError, match="at least 2 directions, got directions=128 and images that span 1"):
        PCASimilarity(line)
    with pytest.raises(ValueError, match="at least 2 directions, got directions=1"):
        PCASimilarity(TrainingBank.from_tensors(torch.rand(5, 3, 8, 8)), directions=1)
    few = TrainingBank.from_tensors(torch.rand(3, 3, 8, 8))
    torch.testing.assert_close(PCASimilarity(few)(few.pictures[:]).value, torch.ones(3))


def test_a_descriptor_that_is_not_finite_is_refused_by_the_image():
    images = torch.rand(70, 3, 4, 4)
    similarity = DescriptorSimilarity(
        TrainingBank.from_tensors(images), lambda x: torch.where(x.flatten(1) == images[66].flatten(), torch.nan, 1.0)
    )
    with pytest.raises(ValueError, match="descriptor of training image 66 of memory is not finite"):
        similarity(images[:1])


def test_a_run_tells_pictures_of_another_size_than_the_networks_in_a_line(command, tmp_path):
    (tmp_path / "small").mkdir()
    for i in range(3):
        Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "small" / f"{i}.png")
    quick = ["n_samples=1", "sampler.steps=1", "trainer=cpu", "metrics.extractor=none", "output_dir=out"]
    code, _, told = command("model=lab_sd", "prompt=x", "data=folder", "data.path=small", *quick)
    assert code == 2 and "error: model: lab_sd draws images of 32×32, the bank's are 16×16" in told
    assert "similarity=correlation compares pixels" in told and not (tmp_path / "out").exists()
