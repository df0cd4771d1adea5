"""Repulsions from training images (SPELL, Safe Denoiser, SGF, ProCreate) by hand, and from an exact copy."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import stable_diffusion
from toy import Toy, made

from amg.bank import TrainingBank
from amg.guidance.rivals.procreate import ProCreate
from amg.guidance.rivals.references import of_bank, spacing
from amg.guidance.rivals.safe_denoiser import SafeDenoiser
from amg.guidance.rivals.sgf import SafetyGuidedFlow
from amg.guidance.rivals.spell import SparseRepellency
from amg.models.latents import LatentDecoder, encode_latents
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.similarity import Match, PCASimilarity

KINDS = {
    "spell": lambda references, **options: SparseRepellency(references, **options),
    "safe_denoiser": lambda references, **options: SafeDenoiser(references, **options),
    "sgf": lambda references, **options: SafetyGuidedFlow(references, **options),
}


def pixels(*rows):
    """Samples of one channel and two pixels."""
    return torch.tensor(rows, dtype=torch.float64).view(-1, 1, 1, 2)


def at(x0, **changes):
    """A step whose x̂0 is given: √ᾱ = 0.8, √(1−ᾱ) = 0.6, ε = 0.5."""
    n = len(x0)
    eps = torch.full_like(x0, 0.5)
    fields = {
        "x_t": 0.8 * x0 + 0.6 * eps,
        "x0": x0,
        "eps": eps,
        "eps_uncond": eps,
        "eps_cond": None,
        "alpha_bar": torch.full((n,), 0.64, dtype=torch.float64),
        "t": torch.full((n,), 0.9, dtype=torch.float64),
        "seeds": tuple(range(n)),
    }
    return made(**fields | changes)


def x0_after(guidance, step):
    return step.predict_x0(guidance(step, None)[0])


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_spell_pushes_out_of_each_ball_by_hand():
    # references (0, 0) and (6, 0), radius 5. Sample (3, 4) is on both surfaces; (3, 0) is 3 from each: the pushes
    # cancel; (0, 2) is 2 from the first and √40 from the second: (5/2 − 1)(0, 2) = (0, 3); (20, 0) is outside
    references = pixels([0, 0], [6, 0])
    step = at(pixels([3, 4], [3, 0], [0, 2], [20, 0]))
    moved = x0_after(SparseRepellency(references, radius=5, scale=1.0), step)
    torch.testing.assert_close(moved, pixels([3, 4], [3, 0], [0, 5], [20, 0]))
    eps, _ = SparseRepellency(references, radius=5, scale=1.6)(step, None)
    torch.testing.assert_close(step.predict_x0(eps)[2], pixels([0, 2 + 1.6 * 3])[0])
    assert torch.equal(eps[3], step.eps[3])


def test_safe_denoiser_subtracts_the_weighted_mean_by_hand():
    # 2 σ² = 2: distances 2 and 4 weigh exp(−1) and exp(−2)
    references, x0 = pixels([0, 0], [6, 0]), pixels([2, 0])
    a, b = math.exp(-1), math.exp(-2)
    method = SafeDenoiser(references, sigma=1, scale=0.5)
    torch.testing.assert_close(x0_after(method, at(x0)), pixels([2 - 0.5 * 6 * b / (a + b), 0]))
    below, above = (SafeDenoiser(references, sigma=1, scale=0.5, least=least) for least in (0.5, 0.51))
    assert not torch.equal(below(at(x0), None)[0], at(x0).eps)  # exp(−1) + exp(−2) = 0.503
    assert torch.equal(above(at(x0), None)[0], at(x0).eps)


def test_sgf_is_the_gradient_of_the_squared_discrepancy_by_hand_and_by_autograd():
    references, x0, sigma = pixels([0, 0], [6, 0]), pixels([2, 1], [5, 3]), 2.0
    moved = x0_after(SafetyGuidedFlow(references, sigma, scale=0.3), at(x0))
    a, b = math.exp(-5 / 8), math.exp(-17 / 8)
    torch.testing.assert_close(moved[:1], pixels([2 + 0.3 * (2 * a - 4 * b), 1 + 0.3 * (a + b)]))
    x = x0.clone().requires_grad_()
    squares = (x[:, None] - references[None]).square().sum((2, 3, 4))
    mmd = 1 - 2 * (-squares / (2 * sigma**2)).exp().mean(1)  # k(x, x) − 2 mean k(x, z) + a constant
    (gradient,) = torch.autograd.grad(mmd.sum(), x)
    torch.testing.assert_close(moved - x0, 0.3 * len(references) * sigma**2 / 2 * gradient)


def test_procreate_adds_the_gradient_clipped_to_half_its_scale_by_hand():
    def slope(images):  # ∇_{x̂0} σ = (0.3, 0.4), so ∇_{x_t} σ = that / √ᾱ, of length 0.5 / 0.8
        return Match((images * pixels([0.3, 0.4])).sum((1, 2, 3)), torch.zeros(len(images), dtype=torch.long))

    step = at(pixels([1, 1], [0, 2]))
    eps, _ = ProCreate(slope, scale=10, clip=5, gradient="fixed_eps")(step, None)
    torch.testing.assert_close(eps - step.eps, pixels([0.3, 0.4]).expand(2, -1, -1, -1) * 10 / 0.8 * 0.6)
    eps, _ = ProCreate(slope, scale=10, clip=0.5, gradient="fixed_eps")(step, None)
    torch.testing.assert_close(eps - step.eps, pixels([0.6, 0.8]).expand(2, -1, -1, -1) * 5 * 0.6)


def test_procreate_scales_the_published_weight_as_the_noise_grows():
    def steep(images):
        return Match(1e3 * images.sum((1, 2, 3)), torch.zeros(len(images), dtype=torch.long))

    step = at(torch.zeros(1, 4, 8, 8, dtype=torch.float64))
    eps, _ = ProCreate(steep, gradient="fixed_eps")(step, None)
    assert (eps - step.eps).norm().item() == pytest.approx(0.5 * 250 / 8 * 0.6)  # √(4 · 8²) is an eighth of theirs


def test_procreate_through_the_denoiser_follows_it():
    model, steps = Toy(DDIMScheduler(clip_sample=False), torch.float64), []
    sample(model, [3, 4], steps=3, on_step=lambda step, _: steps.append(step))

    def brightness(images):
        return Match(images.mean((1, 2, 3)), torch.zeros(len(images), dtype=torch.long))

    step, h = steps[1], 1e-6
    eps, _ = ProCreate(brightness, scale=1.0, clip=1e9)(step, None)
    gradient = (eps - step.eps) / (1 - step.alpha_bar).sqrt().view(-1, 1, 1, 1)
    direction = torch.randn(step.x_t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(x):
        return brightness(replace(step, x_t=x).predict_x0(step.predict(x, torch.arange(2)))).value

    expected = (value(step.x_t + h * direction) - value(step.x_t - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-9)


# -- neutral settings ------------------------------------------------------------------------------------------------


def toy_and_bank():
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Toy(DDIMScheduler(clip_sample=False)), TrainingBank.from_tensors(images)


def test_neutral_settings_are_plain_sampling_bit_by_bit():
    model, bank = toy_and_bank()
    references = of_bank(bank, model)
    plain = sample(model, [1, 2, 3], steps=4)
    rows = model.rows
    neutral = [make(references, scale=0) for make in KINDS.values()]
    neutral += [SparseRepellency(references, radius=0), SafeDenoiser(references, least=1e9)]
    neutral += [ProCreate(PCASimilarity(bank), scale=0)]
    for guidance in neutral:
        model.rows = 0
        assert torch.equal(sample(model, [1, 2, 3], guidance=guidance, steps=4), plain)
        assert model.rows == rows  # ProCreate at scale 0 costs no call of the network


@pytest.mark.parametrize("name", [*KINDS, "procreate"])
def test_a_sample_depends_on_its_own_seed_alone_and_the_method_acts(name):
    model, bank = toy_and_bank()
    # clipping brings x̂0 of the random network within reach of the references
    model = Toy(DDIMScheduler(clip_sample=True), torch.float64)
    options = {"radius": 20.0} if name == "spell" else {}
    if name == "procreate":
        guidance = ProCreate(PCASimilarity(bank), 20.0)
    else:
        guidance = KINDS[name](of_bank(bank, model), **options)
    together = sample(model, [1, 2, 3], guidance=guidance, steps=10)
    alone = torch.cat([sample(model, [seed], guidance=guidance, steps=10) for seed in (1, 2, 3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)  # PCA computes in float32
    assert not torch.allclose(together, sample(model, [1, 2, 3], steps=10), atol=1e-2)


def test_the_windows_end_where_they_say():
    references, x0 = pixels([0, 0], [3, 0]), pixels([1, 1])
    for make, until in ((KINDS["safe_denoiser"], 0.78), (KINDS["sgf"], 0.8)):
        for t, acts in ((until, True), (until - 0.01, False)):
            step = at(x0, t=torch.full((1,), t, dtype=torch.float64))
            eps = make(references)(step, None)[0]
            assert (eps is step.eps) is not acts


def test_samples_that_are_not_finite_are_left_alone():
    x0 = pixels([1, 1], [math.nan, 1])
    for make in KINDS.values():
        eps = make(pixels([0, 0], [3, 0]))(at(x0), None)[0]
        assert torch.equal(eps[1], at(x0).eps[1]) and not torch.equal(eps[0], at(x0).eps[0])


# -- at a copy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spell_leaves_an_exact_copy_by_its_radius_in_a_direction_of_the_seed(dtype):
    references = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0 = references[[4, 4, 7]].to(dtype)
    step = at(x0, alpha_bar=torch.full((3,), 0.64, dtype=dtype))
    moved = x0_after(SparseRepellency(references, radius=0.5, scale=1.6), step) - x0
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([0.8] * 3, rel=1e-4)
    cosine = torch.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0)
    assert cosine.abs() < 0.9  # two seeds


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_a_sample_at_or_near_a_reference_moves_away_from_it(name, offset):
    z, other = [1.0, 2.0], [2.5, 2.0]
    x0 = pixels([z[0] - offset, z[1]])
    moved = x0_after(KINDS[name](pixels(z, other)), at(x0))
    assert (moved - pixels(z)).norm() > offset + 0.05


def test_sgf_alone_with_an_exact_copy_has_no_force_as_its_gradient_is_zero():
    moved = x0_after(SafetyGuidedFlow(pixels([1, 2], [50, 2]), sigma=2.0), at(pixels([1, 2])))
    torch.testing.assert_close(moved, pixels([1, 2]))


def test_procreate_leaves_an_exact_copy_by_a_descriptor_whose_norm_is_held_fixed():
    g = torch.Generator().manual_seed(0)
    bank = TrainingBank.from_tensors(torch.rand(40, 3, 4, 4, generator=g) * 1.6 - 0.8)
    similarity, step = PCASimilarity(bank), at(bank.pictures[:3].double())
    moved = x0_after(ProCreate(similarity, 10.0, gradient="fixed_eps"), step)
    assert (similarity(step.x0).value > 0.999).all()
    assert (similarity(moved).value < 0.99).all()
    assert ((moved - step.x0).flatten(1).norm(dim=1) > 0.5).all()


# -- references ------------------------------------------------------------------------------------------------------


def test_references_are_pixels_or_the_latents_that_the_decoder_takes_back():
    model, bank = toy_and_bank()
    assert torch.equal(of_bank(bank, model), bank.pictures[:])
    pipe = stable_diffusion()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = torch.cat([pipe.vae.encode(images[i : i + 1]).latent_dist.mode() for i in range(3)])
    latents = encode_latents(pipe.vae, images)
    torch.testing.assert_close(latents, expected * pipe.vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(LatentDecoder(pipe.vae)(latents), pipe.vae.decode(expected).sample, rtol=1e-3, atol=1e-4)


def test_the_shape_of_references_is_compared_and_the_fix_is_named():
    model, bank = toy_and_bank()
    wrong = TrainingBank.from_tensors(torch.rand(4, 3, 4, 4))
    with pytest.raises(ValueError, match=r"references are \(3, 4, 4\), the samples \(3, 8, 8\): load the bank"):
        of_bank(wrong, model)
    with pytest.raises(ValueError, match="load the bank"):
        sample(model, [1], guidance=SparseRepellency(wrong.pictures[:]), steps=1)


def test_one_guidance_serves_a_guarded_pipeline_and_sample():
    pipe = stable_diffusion(dtype=torch.float64)
    model = StableDiffusion(pipe, scheduler=None)
    side = model.side
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    references = of_bank(TrainingBank.from_tensors(images), model)
    assert references.shape[1:] == model.shape
    guidance = SparseRepellency(references, radius=50.0)
    expected = sample(model, [4, 5], guidance=guidance, prompts=["a cat", "sea"], s0=3.0, steps=3)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 3.0}
    images = guard(pipe, guidance)(["a cat", "sea"], generator=generators, **options).images
    torch.testing.assert_close(images, expected)
    assert not torch.allclose(expected, sample(model, [4, 5], prompts=["a cat", "sea"], s0=3.0, steps=3), atol=1e-2)


def test_spacing_is_the_median_distance_to_the_nearest_other():
    assert spacing(pixels([0, 0], [0, 1], [0, 3], [4, 3], [9, 3])) == pytest.approx(2)  # of 1, 1, 2, 4, 5
    with pytest.raises(ValueError, match="at least 2"):
        spacing(pixels([0, 0]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda z: SparseRepellency(z, radius=-1), "guidance.radius"),
        (lambda z: SparseRepellency(z, radius=1, scale=math.nan), "guidance.scale"),
        (lambda z: SafeDenoiser(z, sigma=0), "guidance.sigma"),
        (lambda z: SafeDenoiser(z, least=-1), "guidance.least"),
        (lambda z: SafetyGuidedFlow(z, sigma=-1), "guidance.sigma"),
        (lambda z: SafetyGuidedFlow(z, until=2), "guidance.until"),
        (lambda z: SafeDenoiser(z[0]), "guidance.references"),
        (lambda z: ProCreate(None, clip=-1), "guidance.clip"),
        (lambda z: ProCreate(None, gradient="none"), "guidance.gradient"),
    ],
)
def test_bad_settings_are_refused_by_key(make, said):
    with pytest.raises(ValueError, match=said):
        make(pixels([0, 0], [1, 1]))
