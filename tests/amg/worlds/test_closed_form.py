"""The exact mixture against Monte Carlo, finite differences and scipy; the world's truth about itself."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, multivariate_normal

from amg.sampling import sample
from amg.worlds.closed_form import ClosedForm
from amg.worlds.mixture import Mixture

D, REST = 4, 0.05
WEIGHTS = torch.tensor([0.15, 0.1, 0.45, 0.3], dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    """Two points and two Gaussians, of rank 2 and 1, in four dimensions."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((D, D)))
    directions = np.stack([rotation[:2], np.stack([rotation[2], np.zeros(D)])])
    points, means = rng.standard_normal((2, D)), rng.standard_normal((2, D))
    variances = [[0.8, 0.3], [0.5, 0.0]]
    return Mixture(*(torch.tensor(np.array(part)) for part in (points, means, directions, variances)), rest=REST)


@pytest.fixture(scope="module")
def world() -> ClosedForm:
    return ClosedForm(size=16)


def covariances(mixture: Mixture) -> list[np.ndarray]:
    directions = mixture.directions.view(2, 2, D).numpy()
    return [v.T @ np.diag(s) @ v + REST * np.eye(D) for v, s in zip(directions, mixture.variances.numpy(), strict=True)]


def draws(mixture: Mixture, n: int) -> np.ndarray:
    """x_0 of the mixture, drawn by numpy from its full covariances."""
    rng = np.random.default_rng(1)
    parts = [np.repeat(p[None], k, 0) for p, k in zip(mixture.points.numpy(), (0.15 * n, 0.1 * n), strict=True)]
    for mean, covariance, weight in zip(mixture.means.numpy(), covariances(mixture), (0.45, 0.3), strict=True):
        parts.append(rng.multivariate_normal(mean, covariance, round(weight * n)))
    return np.concatenate(parts)


def noised(mixture: Mixture, alpha_bar: float, n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x0 = mixture.draw(torch.multinomial(WEIGHTS, n, replacement=True, generator=generator), generator)
    noise = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise, torch.full((n,), alpha_bar, dtype=torch.float64)


@pytest.mark.parametrize("alpha_bar", [0.05, 0.3, 0.6])
def test_denoiser_equals_brute_force_monte_carlo(mixture, alpha_bar):
    """E[x_0 | x_t] = Σ x_0 p(x_t | x_0) / Σ p(x_t | x_0) over draws of x_0."""
    x0 = draws(mixture, 400_000)
    x_t, alpha_bars = noised(mixture, alpha_bar)
    exact = mixture.posterior_mean(x_t, alpha_bars, WEIGHTS.log()).numpy()
    for one, mean in zip(x_t.numpy(), exact, strict=True):
        likelihood = np.exp(-0.5 * ((one - alpha_bar**0.5 * x0) ** 2).sum(1) / (1 - alpha_bar))
        share = likelihood / likelihood.sum()
        brute = share @ x0
        error = np.sqrt((share[:, None] ** 2 * (x0 - brute) ** 2).sum(0))  # of a self-normalised estimate
        assert error.max() < 0.02
        assert (np.abs(mean - brute) < 4.5 * error).all()


@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.9, 0.99])
def test_denoiser_equals_finite_differences_of_the_log_density(mixture, alpha_bar):
    """Tweedie: √ᾱ E[x_0 | x_t] = x_t + (1 − ᾱ) ∇ log p(x_t)."""
    x_t, alpha_bars = noised(mixture, alpha_bar)

    def log_p(x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(WEIGHTS.log() + mixture.log_density(x, alpha_bars), dim=1)

    h = 1e-5
    steps = h * torch.eye(D, dtype=torch.float64)
    score = torch.stack([(log_p(x_t + step) - log_p(x_t - step)) / (2 * h) for step in steps], dim=1)
    exact = mixture.posterior_mean(x_t, alpha_bars, WEIGHTS.log())
    assert (exact - (x_t + (1 - alpha_bar) * score) / alpha_bar**0.5).abs().max() < 1e-6


@pytest.mark.parametrize("alpha_bar", [0.0, 0.3, 0.95])
def test_log_density_of_each_component_equals_scipy(mixture, alpha_bar):
    x_t, alpha_bars = noised(mixture, alpha_bar)
    spread = [np.zeros((D, D))] * 2 + covariances(mixture)
    for k, (center, covariance) in enumerate(zip(mixture.centers.numpy(), spread, strict=True)):
        law = multivariate_normal(alpha_bar**0.5 * center, alpha_bar * covariance + (1 - alpha_bar) * np.eye(D))
        assert np.allclose(mixture.log_density(x_t, alpha_bars)[:, k], law.logpdf(x_t.numpy()), rtol=1e-9, atol=1e-9)


def test_component_left_out_leaves_no_trace(mixture):
    x_t, alpha_bars = noised(mixture, 0.5)
    alone = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    assert torch.allclose(mixture.posterior_mean(x_t, alpha_bars, alone), mixture.points[1].expand(5, D))


def test_draws_have_the_exact_moments(mixture):
    n = 50_000
    for k, covariance in enumerate([np.zeros((D, D))] * 2 + covariances(mixture)):
        x = mixture.draw(torch.full((n,), k), torch.Generator().manual_seed(k)).numpy()
        error = np.sqrt(np.diag(covariance) / n)
        assert (np.abs(x.mean(0) - mixture.centers[k].numpy()) <= 4.5 * error + 1e-10).all()
        # the variance of a sample covariance of Gaussians: (C_ii C_jj + C_ij²) / n
        error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
        assert (np.abs(np.cov(x.T) - covariance) <= 4.5 * error + 1e-10).all()


# -- the world of emoji ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoiser_is_finite_and_right_at_both_ends(world, dtype):
    x, component = world.draw(8, seed=3)
    x = torch.cat([x, world.pictures.images[world.planted[:4]]]).to(dtype)
    noise = torch.randn(x.shape, dtype=dtype)
    start = world.denoise(noise, torch.zeros(len(x), dtype=dtype))
    prior = (world.weights[:, None] * world.mixture.centers).sum(0).view(1, *world.shape)
    assert (start - prior).abs().max() < 1e-5  # noise alone says nothing
    end = world.denoise(x, torch.ones(len(x), dtype=dtype))
    assert (end - x).abs().max() < 1e-4  # no noise, nothing to remove
    for alpha_bar in (1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12):
        bars = torch.full((len(x),), alpha_bar, dtype=torch.float64)
        assert world.denoise(alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * noise, bars).isfinite().all()


@pytest.mark.parametrize("condition", [None, 0, "planted", "subgroup"])
def test_denoiser_of_every_timestep_is_finite_under_every_kind_of_condition(world, condition):
    words = {"planted": world.pictures.captions[world.planted[0]][0], "subgroup": world.subgroups[0]}
    encoded = world.encode([words.get(condition, condition)] * 2)
    noise = torch.randn(2, *world.shape)
    for timestep in (0, 1, 500, 998, 999):
        assert world(noise, torch.tensor(timestep), encoded)[0].isfinite().all()


def test_captions_of_a_component_sum_to_one(world):
    table = torch.stack(list(world.captions.values()), dim=1)  # (K, captions)
    assert table.min() >= 0
    assert (table.sum(1) - 1).abs().max() < 1e-12


def test_a_planted_caption_asks_for_its_pictures_with_the_caption_weight():
    world = ClosedForm(size=16, planted_weight=0.05, caption_weight=0.3)
    assert world.true_copy_rate() == pytest.approx(0.05)
    captions = {caption for i in world.planted for caption in world.pictures.captions[i]}
    assert len(captions) > len(world.planted)  # duplicated pictures have several
    for caption in captions:
        assert world.true_copy_rate(caption) == pytest.approx(0.3)
        owners = [j for j, i in enumerate(world.planted) if caption in world.pictures.captions[i]]
        weights = world.component_weights(caption)
        assert weights[owners].sum().item() == pytest.approx(0.3) and weights.sum().item() == pytest.approx(1)
        groups = {world.component_subgroup[j] for j in owners}
        asked = {world.component_subgroup[k] for k in world.asked_for(caption).nonzero().flatten().tolist()}
        assert asked == groups


def test_labels_and_captions_share_one_joint_table(world):
    groups = torch.tensor([world.classes.index(group) for group in world.component_group])
    by_label = torch.stack([world.component_weights(label) for label in range(len(world.classes))])
    share = torch.stack([world.weights[groups == label].sum() for label in range(len(world.classes))])
    assert torch.allclose(share @ by_label, world.weights)  # Σ p(label) p(component | label)
    mass = {caption: (world.weights * column).sum() for caption, column in world.captions.items()}
    back = sum(mass[caption] * world.component_weights(caption) for caption in mass)
    assert torch.allclose(back, world.weights)
    assert sum(mass.values()).item() == pytest.approx(1)


def test_exact_draws_hold_as_many_points_as_the_true_rate_says(world):
    caption = world.pictures.captions[world.planted[0]][0]
    for condition, n in ((None, 4000), (caption, 1000)):
        _, component = world.draw(n, condition, seed=4)
        low, high = binom.interval(0.95, n, world.true_copy_rate(condition))
        assert low <= world.is_copy(component).sum().item() <= high
        assert world.asked_for(condition)[component].all()


def test_responsible_component_is_the_one_that_was_drawn(world):
    images, component = world.draw(400, seed=5)
    found = world.responsible(images)
    assert world.is_copy(component).sum() >= 3
    assert torch.equal(world.is_copy(found), world.is_copy(component))
    assert (found == component).double().mean() > 0.98


def test_a_copy_with_a_little_grain_is_still_a_copy(world):
    copies = world.pictures.images[world.planted]
    grained = copies + 0.05 * torch.randn_like(copies)
    assert torch.equal(world.responsible(grained), torch.arange(len(world.planted)))


def test_the_bank_holds_each_picture_once_and_counts_duplicates(world):
    bank = world.bank()
    assert len(bank) == len(world.pictures.names)
    repeats = {i: len(world.pictures.captions[i]) for i in world.planted}
    assert int(bank.multiplicity.sum()) == len(bank) + sum(repeats.values()) - len(repeats)


def test_the_name_of_an_ordinary_picture_asks_for_its_subgroup(world):
    i = next(i for i, cause in enumerate(world.pictures.causes) if not cause)
    asked = [world.component_weights(name) for name in (world.pictures.names[i], world.pictures.subgroups[i])]
    assert torch.equal(*asked) or world.pictures.names[i] in world.captions


@pytest.mark.parametrize("slip, near", [("gaot", "goat"), ("animal mamal", "animal mammal")])
def test_an_unknown_caption_is_answered_by_near_ones(world, slip, near):
    with pytest.raises(ValueError, match=rf"named '{slip}'; near: .*{near}"):
        world.encode([slip])


def test_a_caption_near_to_nothing_is_answered_by_examples(world):
    with pytest.raises(ValueError, match=f"e.g. {world.subgroups[0]}"):
        world.encode(["7777777"])


@pytest.mark.parametrize("label", [-1, 99])
def test_a_label_out_of_range_is_answered_by_the_range(world, label):
    with pytest.raises(ValueError, match=rf"label {label} is out of range: 0 … {len(world.classes) - 1} \("):
        world.encode([label])


@pytest.mark.parametrize(
    "options, key",
    [({"planted_weight": 0}, "planted_weight"), ({"caption_weight": 1}, "caption_weight"), ({"rest": 0}, "rest"),
     ({"rank": 0}, "rank"), ({"planted_weight": 0.9, "caption_weight": 0.01}, "caption_weight is too small")],
)  # fmt: skip
def test_settings_without_meaning_are_refused(options, key):
    with pytest.raises(ValueError, match=f"model.*{key}"):
        ClosedForm(size=16, **options)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["nothing", "planted"])
def test_unguided_samples_copy_at_the_true_rate(asked):
    # a large weight of the points: at 0.03, 300 samples could not tell a rate from its half
    world, n = ClosedForm(size=16, planted_weight=0.3, caption_weight=0.8), 300
    captions = [world.pictures.captions[i][0] for i in world.planted]
    conditions = [captions[i % len(captions)] if asked == "planted" else None for i in range(n)]
    copies = 0
    for seeds in torch.arange(n).split(150):
        drawn = sample(world, seeds.tolist(), world.encode([conditions[i] for i in seeds]))
        copies += world.is_copy(world.responsible(drawn)).sum().item()
    low, high = binom.interval(0.95, n, world.true_copy_rate(conditions[0]))
    assert low <= copies <= high
