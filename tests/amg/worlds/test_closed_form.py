"""The exact mixture against Monte Carlo, finite differences and scipy; the world's truth about itself."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.stats import binom, multivariate_normal

from amg.sampling import sample
from amg.worlds.closed_form import ClosedForm
from amg.worlds.mixture import Mixture

CHANNELS, PIXELS, REST = 2, 3, 0.05
D = CHANNELS * PIXELS
WEIGHTS = torch.tensor([0.15, 0.1, 0.45, 0.3], dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    """Two points and two Gaussians, of rank 2 and 1 in each of two channels of three pixels."""
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((PIXELS, PIXELS)))[0] for _ in range(2 * CHANNELS)]
    directions = np.stack([basis[:2] for basis in bases]).reshape(2, CHANNELS, 2, PIXELS)
    directions[1, :, 1] = 0
    points, means = rng.standard_normal((2, CHANNELS, PIXELS)), rng.standard_normal((2, CHANNELS, PIXELS))
    variances = np.array([[[0.8, 0.3], [0.4, 0.2]], [[0.5, 0.0], [0.6, 0.0]]])
    return Mixture(*(torch.tensor(part) for part in (points, means, directions, variances)), rest=REST)


@pytest.fixture(scope="module")
def world() -> ClosedForm:
    return ClosedForm(size=16)


def covariances(mixture: Mixture) -> list[np.ndarray]:
    """Full covariances (D, D) of the Gaussians: a block for each channel."""
    directions = mixture.directions.view(CHANNELS, 2, 2, PIXELS).numpy()
    blocks = [
        [directions[c, g].T @ np.diag(mixture.variances[g, c].numpy()) @ directions[c, g] for c in range(CHANNELS)]
        for g in range(2)
    ]
    return [block_diag(*parts) + REST * np.eye(D) for parts in blocks]


def draws(mixture: Mixture, n: int) -> np.ndarray:
    """x_0 of the mixture, drawn by numpy from its full covariances."""
    rng = np.random.default_rng(1)
    centers = mixture.centers.numpy()
    parts = [np.repeat(point[None], k, 0) for point, k in zip(centers, (round(0.15 * n), round(0.1 * n)), strict=False)]
    for mean, covariance, weight in zip(centers[2:], covariances(mixture), (0.45, 0.3), strict=True):
        parts.append(rng.multivariate_normal(mean, covariance, round(weight * n)))
    return np.concatenate(parts)


def noised(mixture: Mixture, alpha_bar: float, n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x0 = mixture.sample(torch.multinomial(WEIGHTS, n, replacement=True, generator=generator), generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise, torch.full((n,), alpha_bar, dtype=torch.float64)


def log_weights(n: int) -> torch.Tensor:
    return WEIGHTS.log().expand(n, -1)


@pytest.mark.parametrize("alpha_bar", [0.05, 0.3, 0.6])
def test_denoiser_equals_brute_force_monte_carlo(mixture, alpha_bar):
    """E[x_0 | x_t] = Σ x_0 p(x_t | x_0) / Σ p(x_t | x_0) over draws of x_0."""
    x0 = draws(mixture, 400_000)
    x_t, alpha_bars = noised(mixture, alpha_bar)
    exact = mixture.posterior_mean(x_t, alpha_bars, log_weights(5)).flatten(1).numpy()
    for noisy, mean in zip(x_t.flatten(1).numpy(), exact, strict=True):
        likelihood = np.exp(-0.5 * ((noisy - alpha_bar**0.5 * x0) ** 2).sum(1) / (1 - alpha_bar))
        share = likelihood / likelihood.sum()
        brute = share @ x0
        error = np.sqrt((share[:, None] ** 2 * (x0 - brute) ** 2).sum(0))  # of a self-normalised estimate
        assert error.max() < 0.03
        assert (np.abs(mean - brute) < 4.5 * error).all()


@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.9, 0.99])
def test_denoiser_equals_finite_differences_of_the_log_density(mixture, alpha_bar):
    """Tweedie: √ᾱ E[x_0 | x_t] = x_t + (1 − ᾱ) ∇ log p(x_t)."""
    x_t, alpha_bars = noised(mixture, alpha_bar)

    def log_p(x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(WEIGHTS.log() + mixture.log_density(x, alpha_bars), dim=1)

    h = 1e-5
    steps = h * torch.eye(D, dtype=torch.float64).view(D, CHANNELS, PIXELS)
    score = torch.stack([(log_p(x_t + step) - log_p(x_t - step)) / (2 * h) for step in steps], dim=1)
    exact = mixture.posterior_mean(x_t, alpha_bars, log_weights(5))
    assert (exact - (x_t + (1 - alpha_bar) * score.view_as(x_t)) / alpha_bar**0.5).abs().max() < 1e-6


@pytest.mark.parametrize("alpha_bar", [0.0, 0.3, 0.95])
def test_log_density_of_each_component_equals_scipy(mixture, alpha_bar):
    x_t, alpha_bars = noised(mixture, alpha_bar)
    spread = [np.zeros((D, D))] * 2 + covariances(mixture)
    for k, (center, covariance) in enumerate(zip(mixture.centers.numpy(), spread, strict=True)):
        law = multivariate_normal(alpha_bar**0.5 * center, alpha_bar * covariance + (1 - alpha_bar) * np.eye(D))
        assert np.allclose(
            mixture.log_density(x_t, alpha_bars)[:, k], law.logpdf(x_t.flatten(1).numpy()), rtol=1e-9, atol=1e-9
        )


def test_component_left_out_leaves_no_trace(mixture):
    x_t, alpha_bars = noised(mixture, 0.5)
    only = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf], dtype=torch.float64).expand(5, -1)
    mean = mixture.posterior_mean(x_t, alpha_bars, only)
    assert torch.allclose(mean.flatten(1), mixture.centers[1].expand(5, D))


def test_several_conditions_share_the_densities_of_one_x_t(mixture):
    x_t, alpha_bars = noised(mixture, 0.5)
    other = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64).log().expand(5, -1)
    both = mixture.posterior_mean(x_t, alpha_bars, torch.cat([log_weights(5), other]))
    apart = [mixture.posterior_mean(x_t, alpha_bars, weights) for weights in (log_weights(5), other)]
    assert torch.allclose(both, torch.cat(apart), rtol=0, atol=1e-12)


def test_draws_have_the_exact_moments(mixture):
    n = 50_000
    for k, covariance in enumerate([np.zeros((D, D))] * 2 + covariances(mixture)):
        x = mixture.sample(torch.full((n,), k), torch.Generator().manual_seed(k)).flatten(1).numpy()
        error = np.sqrt(np.diag(covariance) / n)
        assert (np.abs(x.mean(0) - mixture.centers[k].numpy()) <= 4.5 * error + 1e-10).all()
        # the variance of a sample covariance of Gaussians: (C_ii C_jj + C_ij²) / n
        error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
        assert (np.abs(np.cov(x.T) - covariance) <= 4.5 * error + 1e-10).all()


# -- the world of drawings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoiser_is_finite_and_right_at_both_ends(world, dtype):
    x, _ = world.sample(8, seed=3)
    x = torch.cat([x, world.training.images[:4]]).to(dtype)
    noise = torch.randn(x.shape, dtype=dtype)
    start = world.denoise(noise, torch.zeros(len(x), dtype=dtype))
    prior = (world.weights[:, None] * world.mixture.centers).sum(0).view(1, *world.shape)
    assert (start - prior).abs().max() < 1e-5  # noise alone says nothing
    end = world.denoise(x, torch.ones(len(x), dtype=dtype))
    assert (end - x).abs().max() < 1e-4  # no noise, nothing to remove
    for alpha_bar in (1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12):
        bars = torch.full((len(x),), alpha_bar, dtype=torch.float64)
        assert world.denoise(alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * noise, bars).isfinite().all()


@pytest.mark.parametrize("condition", [None, 0, "the famous owl", "owl"])
def test_denoiser_of_every_timestep_is_finite_under_every_kind_of_condition(world, condition):
    encoded = world.encode([condition] * 2)
    noise = torch.randn(2, *world.shape)
    for timestep in (0, 1, 500, 998, 999):
        assert world(noise, torch.tensor(timestep), encoded)[0].isfinite().all()


def test_both_branches_of_cfg_equal_two_calls(world):
    noise, timestep = torch.randn(3, *world.shape), torch.tensor(600)
    null, condition = world.encode([None] * 3), world.encode(["owl", "the famous owl", "bus"])
    both = world(torch.cat([noise, noise]), timestep, torch.cat([null, condition]))[0]
    apart = torch.cat([world(noise, timestep, null)[0], world(noise, timestep, condition)[0]])
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-6)


def test_captions_of_a_component_sum_to_at_most_one(world):
    table = torch.stack(list(world.captions.values()), dim=1)  # (K, captions)
    assert table.min() >= 0
    assert (table.sum(1)[world.points :] - 1).abs().max() < 1e-12
    assert (table.sum(1)[: world.points] < 0.5).all()


def test_a_planted_caption_asks_for_its_images_with_the_caption_weight():
    world = ClosedForm(size=16, planted_weight=0.05, caption_weight=0.4)
    assert world.rate() == pytest.approx(0.05)
    captions = {caption for captions in world.training.captions[: world.points] for caption in captions}
    assert len(captions) > world.points  # duplicated images have several
    for caption in captions:
        assert world.rate(caption) == pytest.approx(0.4)
        owners = [j for j in range(world.points) if caption in world.training.captions[j]]
        weights = world.component_weights(caption)
        assert weights[owners].sum().item() == pytest.approx(0.4) and weights.sum().item() == pytest.approx(1)
        asked = {world.things[k] for k in world.asked_for(caption).nonzero().flatten().tolist()}
        assert asked == {world.things[owners[0]]}


def test_the_name_of_a_thing_asks_for_its_drawings_alike_and_rarely_for_a_planted_one(world):
    weights = world.component_weights("guitar")
    drawn = [k for k in range(world.points, len(world.things)) if world.things[k] == "guitar"]
    assert weights[drawn].std() < 1e-12 and weights[drawn].sum() > 0.97
    assert weights[drawn].sum() + weights[: world.points].sum() == pytest.approx(1)


def test_labels_share_the_joint_table(world):
    groups = torch.tensor([world.classes.index(group) for group in world.groups])
    by_label = torch.stack([world.component_weights(label) for label in range(len(world.classes))])
    share = torch.stack([world.weights[groups == label].sum() for label in range(len(world.classes))])
    assert torch.allclose(share @ by_label, world.weights)  # Σ p(label) p(component | label)


def test_exact_samples_hold_as_many_points_as_the_true_rate_says(world):
    for condition, n in ((None, 4000), ("the famous owl", 1000)):
        _, component = world.sample(n, condition, seed=4)
        low, high = binom.interval(0.95, n, world.rate(condition))
        assert low <= (component < world.points).sum().item() <= high
        assert world.asked_for(condition)[component].all()


def test_responsible_component_is_the_one_that_was_sampled(world):
    images, component = world.sample(400, seed=5)
    responsible = world.responsible(images)
    assert (component < world.points).sum() >= 3
    assert torch.equal(world.copies(images), component < world.points)
    assert (responsible == component).double().mean() > 0.95


def test_a_copy_with_a_little_grain_is_still_a_copy(world):
    copies = world.training.images[: world.points]
    grained = copies + 0.05 * torch.randn_like(copies)
    assert torch.equal(world.responsible(grained), torch.arange(world.points))


def test_bits_of_a_copy_are_many_and_those_of_a_novel_image_the_price_of_the_points(world):
    copies = world.training.images[: world.points]
    assert world.bits([None] * len(copies), copies).min() > 20
    novel, component = world.sample(50, seed=7)
    novel = novel[component >= world.points]
    # no point is near: p = (1 - w) p_safe
    assert world.bits([None] * len(novel), novel).median().item() == pytest.approx(math.log2(1 - 0.03), abs=1e-6)


def test_the_bank_holds_each_image_once_and_counts_duplicates(world):
    bank = world.world().bank
    assert len(bank) == len(world.training.images)
    repeats = sum(len(captions) - 1 for captions in world.training.captions)
    assert int(bank.multiplicity.sum()) == len(bank) + repeats


def test_novel_samples_are_rarely_close_to_the_training_set():
    from amg.similarity import PCASimilarity

    world = ClosedForm()
    images, component = world.sample(600, seed=8)
    novel = images[component >= world.points].clamp(-1, 1)
    assert (PCASimilarity(world.world().bank)(novel).value > 0.97).float().mean() < 0.02


@pytest.mark.parametrize("slip, near", [("guitra", "guitar"), ("the famos owl", "the famous owl")])
def test_an_unknown_caption_is_answered_by_near_ones(world, slip, near):
    with pytest.raises(ValueError, match=rf"named '{slip}'; near: .*{near}"):
        world.encode([slip])


def test_a_caption_near_to_nothing_is_answered_by_examples(world):
    with pytest.raises(ValueError, match="e.g. airplane"):
        world.encode(["7777777"])


@pytest.mark.parametrize("label", [-1, 99])
def test_a_label_out_of_range_is_answered_by_the_range(world, label):
    with pytest.raises(ValueError, match=rf"label {label} is out of range: 0 … {len(world.classes) - 1} \("):
        world.encode([label])


@pytest.mark.parametrize(
    "options, key",
    [({"planted_weight": 0}, "planted_weight"), ({"caption_weight": 1}, "caption_weight"), ({"rest": 0}, "rest"),
     ({"planted_weight": 0.9, "caption_weight": 0.01}, "caption_weight is too small")],
)  # fmt: skip
def test_settings_without_meaning_are_refused(options, key):
    with pytest.raises(ValueError, match=f"model.*{key}"):
        ClosedForm(size=16, **options)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["nothing", "planted"])
def test_unguided_samples_copy_at_the_true_rate(asked):
    # a large weight of the points: at 0.03, 300 samples could not tell a rate from its half
    world, n = ClosedForm(size=16, planted_weight=0.3, caption_weight=0.8), 300
    captions = [captions[0] for captions in world.training.captions[: world.points]]
    conditions = [captions[i % len(captions)] if asked == "planted" else None for i in range(n)]
    copies = 0
    for seeds in torch.arange(n).split(150):
        x = sample(world, seeds.tolist(), world.encode([conditions[i] for i in seeds]))
        copies += world.copies(x).sum().item()
    low, high = binom.interval(0.95, n, world.rate(conditions[0]))
    assert low <= copies <= high


def test_half_of_the_default_prompts_ask_for_planted_images(world):
    prompts = world.world().prompts
    causes = [world.cause(prompt) for prompt in prompts]
    assert set(causes[1::2]) == {"ordinary"} and "ordinary" not in causes[::2]
    assert "guitar sticker pack" in prompts and "picture of a ghost" in prompts
