"""Each detector by hand on a toy network; all of them row by row; and in the exact world, where the truth is known."""

import pytest
import torch
from diffusers import DDIMScheduler
from toy import Toy

from amg.detectors import DSM, Anisotropy, Magnitude, NearestPicture, Norms, OneStep, network_calls, observe, places
from amg.metrics.detection import auc
from amg.sampling import sample
from amg.similarity import Match, PCASimilarity
from amg.worlds.closed_form import ClosedForm

STEPS, SEEDS, PROMPTS = 5, [3, 8, 1, 7], ["zero", "one", "two", "zero"]
KINDS = ("epsilon", "v_prediction", "sample")


def toy(kind="epsilon"):
    return Toy(DDIMScheduler(prediction_type=kind, clip_sample=False), torch.float64, conditional=True)


def redness(images):
    return Match(images[:, 0].mean((1, 2)), torch.zeros(len(images), dtype=torch.long))


def every():
    return {
        "nearest": NearestPicture(redness),
        "magnitude": Magnitude(),
        "whole": Magnitude(whole=True),
        "anisotropy": Anisotropy(),
        "norms": Norms(),
        "one_step": OneStep(),
        "dsm": DSM(),
    }


def seen_by(detector, model, prompts=PROMPTS, seeds=SEEDS, s0=3.0):
    return observe(model, {"it": detector}, seeds, prompts, s0=s0, steps=STEPS).seen["it"]


def at_noise(place):
    """x_T, ε(x_T, y), ε(x_T) and ᾱ at a place of the schedule, straight from the network."""
    model = toy()
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[place]
    x_T = torch.stack(
        [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in SEEDS]
    )
    return x_T, model(x_T, t, model.encode(PROMPTS))[0], model(x_T, t, None)[0], scheduler.alphas_cumprod[t].double()


def chain(model, s0=3.0):
    steps = []
    x0 = sample(model, SEEDS, prompts=PROMPTS, s0=s0, steps=STEPS, on_step=lambda step, _: steps.append(step))
    return steps, x0


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_is_the_norm_of_what_the_prompt_changes_whatever_the_network_predicts(kind):
    _, cond, uncond, _ = at_noise(0)
    detector = Magnitude()
    score = detector.score(seen_by(detector, toy(kind)))
    assert torch.allclose(score, (cond - uncond).square().sum((1, 2, 3)).sqrt(), rtol=1e-6)


def test_magnitude_of_the_whole_chain_is_the_mean_over_its_steps():
    steps, _ = chain(toy())
    expected = torch.stack([(step.eps_cond - step.eps_uncond).flatten(1).norm(dim=1) for step in steps]).mean(0)
    detector = Magnitude(whole=True)
    assert torch.allclose(detector.score(seen_by(detector, toy())), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_anisotropy_adds_the_norm_at_noise_to_the_cosine_per_pixel_near_the_end(kind):
    _, cond, uncond, _ = at_noise(0)
    norm = (cond - uncond).square().sum((1, 2, 3)).sqrt()
    _, cond, uncond, _ = at_noise(-3)
    change = cond - uncond
    cosine = (uncond * change).sum(1) / (uncond.square().sum(1).sqrt() * change.square().sum(1).sqrt())
    detector = Anisotropy(gamma_norm=0.5, gamma_cos=7.0)
    score = detector.score(seen_by(detector, toy(kind)))
    assert torch.allclose(score, 0.5 * norm + 7 * cosine.mean((1, 2)), rtol=1e-5)  # it computes in float32


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_mean_square_of_one_step_less_its_noise(kind):
    x_T, cond, uncond, alpha_bar = at_noise(0)
    eps = uncond + 3 * (cond - uncond)
    x0 = (x_T - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    detector = OneStep()
    expected = (x0 - x_T / alpha_bar.sqrt()).square().mean((1, 2, 3))
    assert torch.allclose(detector.score(seen_by(detector, toy(kind))), expected, rtol=1e-5)


def test_one_step_needs_no_text():
    detector = OneStep()
    assert detector.score(seen_by(detector, toy(), prompts=None)).shape == (4,)


def test_nearest_sees_the_finished_unguided_picture():
    _, x0 = chain(toy())
    detector = NearestPicture(redness)
    assert torch.allclose(detector.score(seen_by(detector, toy())), redness(x0.clamp(-1, 1)).value)


def test_norms_sees_each_update_and_each_clean_prediction():
    steps, x0 = chain(toy())
    points = [*(step.x_t for step in steps), x0]
    updates = torch.stack([(b - a).flatten(1).norm(dim=1) for a, b in zip(points, points[1:], strict=False)], dim=1)
    clean = torch.stack([step.x0.flatten(1).norm(dim=1) for step in steps], dim=1)
    assert torch.allclose(seen_by(Norms(), toy()), torch.stack([updates, clean], dim=2))


def test_norms_scores_the_strangest_step_by_the_milder_of_its_two_deviations():
    ordinary = torch.tensor([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])  # means 2, 20, 3, 30
    detector = Norms().learn(ordinary)
    deviation = 2**0.5  # of 1 and 3, with n − 1; tenfold in the second
    seen = torch.tensor([[[2.0, 20.0], [3.0, 30.0]], [[2.0 + 4 * deviation, 20.0 - 30 * deviation], [3.0, 90.0]]])
    assert torch.allclose(detector.score(seen), torch.tensor([0.0, 3.0]))


def test_norms_are_finite_where_all_ordinary_chains_are_alike():
    detector = Norms().learn(torch.ones(3, 2, 2))
    assert torch.equal(detector.score(torch.ones(1, 2, 2)), torch.zeros(1))
    assert detector.score(torch.full((1, 2, 2), 1.1)).isfinite().all()


def test_norms_that_have_learned_nothing_say_so():
    with pytest.raises(ValueError, match="detector.norms: has seen no ordinary trajectories"):
        Norms().score(torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="detector.norms: .* needs 2 ordinary trajectories, got 1"):
        Norms().learn(torch.ones(1, 2, 2))


def test_what_is_seen_of_a_sample_does_not_depend_on_its_batch():
    together = observe(toy(), every(), SEEDS, PROMPTS, s0=3.0, steps=STEPS)
    for i, (seed, prompt) in enumerate(zip(SEEDS, PROMPTS, strict=True)):
        alone = observe(toy(), every(), [seed], [prompt], s0=3.0, steps=STEPS)
        for name in every():
            assert torch.allclose(alone.seen[name][0], together.seen[name][i], rtol=1e-6), name


def test_the_calls_that_are_told_are_those_that_were_made():
    def rows(prompts=PROMPTS, s0=3.0, **detectors):
        model = toy()
        observe(model, detectors, SEEDS, prompts, s0=s0, steps=STEPS)
        return model.rows / len(SEEDS)

    whole = 2 * STEPS
    assert rows() == whole == network_calls(Norms(), STEPS, 3.0) == network_calls(NearestPicture(redness), STEPS, 3.0)
    assert rows(norms=Norms(), nearest=NearestPicture(redness)) == whole
    for detector in (Magnitude(), Anisotropy(), OneStep()):
        assert rows(it=detector) - whole == network_calls(detector, STEPS, 3.0)
    for detector in (Magnitude(), OneStep()):  # plain conditional: only the look at what the prompt changes is double
        assert rows(s0=1.0, it=detector) - STEPS == network_calls(detector, STEPS, 1.0)
    assert rows(None, 1.0, it=OneStep()) - STEPS == network_calls(OneStep(), STEPS, None) == 1
    # magnitude and one_step share their look
    assert rows(magnitude=Magnitude(), one_step=OneStep()) - whole == 2


def test_seconds_are_those_of_the_detector_alone():
    seconds = observe(toy(), every(), SEEDS, PROMPTS, s0=3.0, steps=STEPS).seconds
    assert 0 < seconds["magnitude"] < seconds["whole"] and 0 < seconds["one_step"] < seconds["norms"]


def test_a_look_beyond_the_schedule_is_refused():
    assert places(Anisotropy(), 3) == ([0, 0], range(0))
    with pytest.raises(ValueError, match="sampler.steps=2: .* take 3 steps at least"):
        places(Anisotropy(), 2)


@pytest.mark.parametrize("detector", [Magnitude(), Anisotropy(), Magnitude(whole=True)])
def test_detectors_of_text_refuse_a_model_without(detector):
    with pytest.raises(ValueError, match="^detector.(magnitude|anisotropy): .*no prompt"):
        seen_by(detector, toy(), prompts=None)


@pytest.fixture(scope="module")
def exact():
    """Prompts that are keys to their picture: score by detector, planted prompts, true copies."""
    model = ClosedForm(size=16, caption_weight=0.9)
    prompts = model.world().prompts
    planted = torch.tensor([model.cause(prompt) != "ordinary" for prompt in prompts])
    detectors = {
        "nearest": NearestPicture(PCASimilarity(model.world().bank)),
        "magnitude": Magnitude(),
        "norms": Norms(),
        "one_step": OneStep(),
    }
    options = {"s0": 3.0, "steps": 15}
    found = observe(model, detectors, range(len(prompts)), prompts, **options)
    ordinary = [prompt for prompt, is_planted in zip(prompts, planted, strict=True) if not is_planted]
    held_out = observe(model, {"norms": Norms()}, range(1000, 1000 + len(ordinary)), ordinary, **options)
    detectors["norms"] = Norms().learn(held_out.seen["norms"])
    copies = model.copies(model.decode(found.x0))
    return {name: d.score(found.seen[name]) for name, d in detectors.items()}, planted, copies


def test_planted_prompts_are_found_by_magnitude_norms_and_the_nearest_picture(exact):
    scores, planted, copies = exact
    assert copies[planted].double().mean() > 0.9 and not copies[~planted].any()
    for name in ("magnitude", "norms", "nearest"):
        assert auc(scores[name], planted) > 0.8, name


def test_true_copies_are_found_without_fail_by_the_nearest_picture(exact):
    scores, _, copies = exact
    assert auc(scores["nearest"], copies) > 0.99
