"""nL2 (Eq. 8) and its gradient against numpy and finite differences."""

import numpy as np
import pytest
import torch

from amg.bank import TrainingBank
from amg.similarity import NormalizedL2


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def numpy_nl2(x: np.ndarray, bank: np.ndarray, k: int, scale: float) -> tuple[float, int]:
    """Eq. 8 for one picture, one distance at a time."""
    distances = np.array([np.sqrt(((x - z) ** 2).sum()) for z in bank])
    order = np.argsort(distances)
    return -distances[order[0]] / (scale * distances[order[:k]].mean()), int(order[0])


def gradient(similarity: NormalizedL2, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(similarity(x).value.sum(), x)[0]


@pytest.mark.parametrize("k, scale", [(2, 0.5), (5, 0.5), (5, 2.0), (50, 0.5)])
def test_value_and_neighbour_equal_an_independent_numpy_version(k, scale):
    images, x = pictures(80), pictures(6, seed=1).double()
    match = NormalizedL2(TrainingBank.from_tensors(images), k=k, scale=scale)(x)
    expected = [numpy_nl2(one, images.double().numpy(), k, scale) for one in x.numpy()]
    assert match.value.tolist() == pytest.approx([value for value, _ in expected], rel=1e-9)
    assert match.index.tolist() == [index for _, index in expected]


def test_value_by_hand():
    images = torch.zeros(3, 3, 1, 1)
    images[1, 0], images[2, 0] = 0.4, -0.8
    x = torch.zeros(1, 3, 1, 1)
    x[0, 0] = 0.1
    # distances 0.1, 0.3, 0.9; k = 2: −0.1 / (0.5 · 0.2)
    value, index = NormalizedL2(TrainingBank.from_tensors(images), k=2)(x)
    assert value.item() == pytest.approx(-1.0, rel=1e-5) and index.item() == 0


@pytest.mark.parametrize("mean_gradient", [False, True])
def test_gradient_equals_finite_differences(mean_gradient):
    """Held fixed, only the distance to n0 moves: the numerator is differenced and the mean frozen at x."""
    images, x = pictures(30), pictures(1, seed=1).double()
    bank, k, h = TrainingBank.from_tensors(images), 5, 1e-6
    keys = images.double().numpy()

    def value(y: np.ndarray) -> float:
        if mean_gradient:
            return numpy_nl2(y, keys, k, 0.5)[0]
        frozen = np.sort(np.sqrt(((x[0].numpy() - keys) ** 2).sum((1, 2, 3))))[:k].mean()
        return -np.sqrt(((y - keys[index]) ** 2).sum()) / (0.5 * frozen)

    index = numpy_nl2(x[0].numpy(), keys, k, 0.5)[1]
    numeric = np.zeros_like(x[0].numpy())
    for place in np.ndindex(*numeric.shape):
        step = np.zeros_like(numeric)
        step[place] = h
        numeric[place] = (value(x[0].numpy() + step) - value(x[0].numpy() - step)) / (2 * h)
    exact = gradient(NormalizedL2(bank, k=k, mean_gradient=mean_gradient), x)[0].numpy()
    assert np.abs(exact - numeric).max() < 1e-8
    assert np.abs(exact).max() > 1e-3


def test_mean_gradient_changes_the_gradient_and_not_the_value():
    bank, x = TrainingBank.from_tensors(pictures(30)), pictures(4, seed=1).double()
    fixed, through = NormalizedL2(bank, k=5), NormalizedL2(bank, k=5, mean_gradient=True)
    assert torch.allclose(fixed(x).value, through(x).value, rtol=1e-9)
    assert (gradient(fixed, x) - gradient(through, x)).abs().max() > 1e-3


@pytest.mark.parametrize("mean_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_at_distance_0(mean_gradient, dtype):
    images = pictures(30)
    similarity = NormalizedL2(TrainingBank.from_tensors(images), k=5, mean_gradient=mean_gradient)
    assert similarity(images[:4].to(dtype)).value.abs().max() < 1e-6
    assert gradient(similarity, images[:4].to(dtype)).isfinite().all()


def test_repeats_of_a_picture_count_once_in_the_mean():
    images, x = pictures(30), pictures(3, seed=1)
    nearest = NormalizedL2(TrainingBank.from_tensors(images), k=5)(x).index
    repeated = torch.cat([images, images[nearest].repeat_interleave(20, 0)])
    plain, crowded = (NormalizedL2(TrainingBank.from_tensors(some), k=5)(x) for some in (images, repeated))
    torch.testing.assert_close(plain.value, crowded.value)
    assert torch.equal(plain.index, crowded.index)


def test_a_step_against_the_gradient_lowers_the_similarity():
    bank = TrainingBank.from_tensors(pictures(30))
    x = (pictures(30)[:4] + 0.1 * pictures(4, seed=1)).double()
    similarity = NormalizedL2(bank, k=5)
    assert (similarity(x - 1e-3 * gradient(similarity, x)).value < similarity(x).value).all()


def test_k_is_capped_at_the_size_of_the_bank():
    bank, x = TrainingBank.from_tensors(pictures(4)), pictures(2, seed=1)
    torch.testing.assert_close(NormalizedL2(bank)(x).value, NormalizedL2(bank, k=4)(x).value)


@pytest.mark.parametrize("options", [{"k": 1}, {"k": 0}, {"scale": 0}, {"scale": -1}])
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(ValueError, match="nL2 needs k >= 2 and scale > 0"):
        NormalizedL2(TrainingBank.from_tensors(pictures(4)), **options)


def test_a_bank_of_one_picture_is_refused():
    with pytest.raises(ValueError, match="at least 2 distinct images"):
        NormalizedL2(TrainingBank.from_tensors(pictures(1).repeat(3, 1, 1, 1)))


def test_training_images_that_differ_by_rounding_alone_give_a_finite_similarity():
    images = torch.full((2, 3, 8, 8), 0.1)
    images[1, 0, 0, 0] = 0.1000001
    bank = TrainingBank.from_tensors(images)
    assert len(bank) == 2
    value = NormalizedL2(bank)(bank.pictures[:]).value
    assert value.isfinite().all() and (value >= -2).all()  # −1/α: the nearest is no farther than the mean
