"""AMG (Eq. 10) on a step made by hand, and what it does to real similarities."""

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.anti_memorization import TERMS
from amg.similarity import Match, NormalizedL2, PCASimilarity
from amg.step import Step
from amg.thresholds import Always, Constant

SIGMA = torch.tensor([0.9, 0.1, 0.5, 0.7], dtype=torch.float64)
CAPTIONS = ("a", "b", "c", "d")
SUBSETS = [subset for size in range(1, 4) for subset in combinations(TERMS, size)]


class Linear:
    """σ = given values + 0.1 · sum of the picture: ∇_{x̂0} σ = 0.1 everywhere. Row i lies nearest to picture i."""

    def __init__(self, values=SIGMA):
        self.values = values

    def __call__(self, images):
        known = self.values if len(images) == len(self.values) else self.values.new_zeros(len(images))
        return Match(known + 0.1 * images.flatten(1).sum(1), torch.arange(len(images)))


def made(calls=None, **changes) -> Step:
    """ε(x_t) = 1, ε(x_t, y) = 2, s0 = 7.5, so ε̂ = 8.5; ε(x_t, y_N) = 1.5; √ᾱ = 0.8, √(1−ᾱ) = 0.6."""
    ones = torch.ones(4, 3, 1, 2, dtype=torch.float64)

    def denoise(rows, captions):
        if calls is not None:
            calls.append((rows.tolist(), list(captions)))
        return 1.5 * ones[rows]

    fields = {
        "x_t": ones,
        "t": torch.full((4,), 0.5, dtype=torch.float64),
        "timestep": 500,
        "alpha_bar": torch.full((4,), 0.64, dtype=torch.float64),
        "eps": 8.5 * ones,
        "eps_uncond": ones,
        "eps_cond": 2 * ones,
        "s0": 7.5,
        "seeds": (0, 1, 2, 3),
        "x0": 0 * ones,
        "denoise": denoise,
        "decode": lambda x0: x0,
    }
    return Step(**fields | changes)


def amg(**options) -> AntiMemorizationGuidance:
    settings = {"similarity": Linear(), "threshold": Constant(0.4), "c1": 5, "c2": 4, "c3": 2, "captions": CAPTIONS}
    return AntiMemorizationGuidance(**settings | options)


# rows 0, 2, 3 (row 1 lies below λ). s1 = 5σ = 4.5, 2.5, 3.5, all below s0 − 1 = 6.5.
# s2 = min(4σ, 6.5 − s1): alone 3.6, 2.0, 2.8; after G_spe 2.0 (capped), 2.0, 2.8. ε(x_t, y_N) − ε(x_t) = 0.5.
# G_sim = c3 √(1−ᾱ) ∇σ / √ᾱ = 2 · 0.6 · 0.1 / 0.8 = 0.15.
SPE, DUP_ALONE, DUP_AFTER_SPE, SIM = (-4.5, -2.5, -3.5), (-1.8, -1.0, -1.4), (-1.0, -1.0, -1.4), (0.15,) * 3


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
def test_every_subset_of_terms_is_eq_10_by_hand(terms):
    eps, state = amg(terms=terms)(made(), None)
    dup = DUP_AFTER_SPE if "spe" in terms else DUP_ALONE
    parts = {"spe": SPE, "dup": dup, "sim": SIM}
    for j, row in enumerate((0, 2, 3)):
        expected = 8.5 + sum(parts[name][j] for name in terms)
        assert torch.allclose(eps[row], torch.full((3, 1, 2), expected, dtype=torch.float64), atol=1e-12)
        for name, norm in (("spe", state.spe), ("dup", state.dup), ("sim", state.sim)):
            assert norm[row].item() == pytest.approx(abs(parts[name][j]) * 6**0.5 if name in terms else 0, abs=1e-12)
    assert torch.equal(eps[1], made().eps[1])


def test_state_tells_what_was_seen_and_done():
    _, state = amg()(made(), None)
    assert torch.equal(state.similarity, SIGMA) and state.index.tolist() == [0, 1, 2, 3]
    assert state.lam.tolist() == [0.4] * 4
    assert state.flagged.tolist() == [True, False, True, True]
    assert state.s1.tolist() == pytest.approx([4.5, 0, 2.5, 3.5])
    assert state.s2.tolist() == pytest.approx([2.0, 0, 2.0, 2.8])
    assert not state.dropped.any()
    assert [getattr(state, name)[1].item() for name in TERMS] == [0, 0, 0]


def test_the_step_itself_is_left_alone():
    step = made()
    amg()(step, None)
    assert torch.equal(step.eps, made().eps) and torch.equal(step.x0, made().x0)


def test_a_similarity_equal_to_the_threshold_is_not_flagged():
    _, state = amg(threshold=Constant(0.5))(made(), None)
    assert state.flagged.tolist() == [True, False, False, True]


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
def test_nothing_flagged_returns_the_prediction_itself(terms):
    calls, step = [], None
    step = made(calls)
    eps, _ = amg(terms=terms, threshold=Constant(2.0))(step, None)
    assert eps is step.eps and not calls


def test_the_neighbours_caption_is_denoised_for_flagged_rows_only_and_once():
    calls = []
    amg()(made(calls), None)
    assert calls == [([0, 2, 3], ["a", "c", "d"])]


def test_rows_from_which_g_spe_took_all_cost_no_network_call():
    calls = []
    _, state = amg(c1=10)(made(calls), None)  # s1 = 6.5 (capped), 5.0, 6.5 (capped)
    assert calls == [([2], ["c"])]
    assert state.s2.tolist() == pytest.approx([0, 0, 1.5, 0])
    assert state.dup.tolist() == pytest.approx([0, 0, 0.75 * 6**0.5, 0])


@pytest.mark.parametrize(
    "options, changes",
    [
        ({"terms": ("spe", "sim")}, {}),
        ({"c2": 0}, {}),
        ({"c1": 100}, {}),
        ({}, {"s0": 1.0}),
        ({}, {"s0": 0.5}),
        ({}, {"eps_cond": None}),
    ],
)
def test_no_network_call_where_g_dup_vanishes(options, changes):
    calls = []
    amg(**options)(made(calls, **changes), None)
    assert not calls


def test_without_a_condition_only_g_sim_acts():
    eps, state = amg()(made(eps_cond=None), None)
    assert eps[:, 0, 0, 0].tolist() == pytest.approx([8.65, 8.5, 8.65, 8.65])
    assert not state.s1.any() and not state.s2.any()


def test_normalized_g_sim_has_length_c3_sqrt_of_1_minus_alpha_bar():
    _, state = amg(terms="sim", normalize=True)(made(), None)
    assert state.sim.tolist() == pytest.approx([1.2, 0, 1.2, 1.2])


def test_gradients_without_a_direction_are_replaced_by_one_of_the_seed_and_the_other_rows_keep_theirs():
    def root(images):  # its gradient is NaN at a black picture
        return Match(0.5 + images.square().flatten(1).sum(1).sqrt(), torch.arange(len(images)))

    x0 = torch.full((4, 3, 1, 2), 0.1, dtype=torch.float64)
    black = x0.clone()
    black[0] = 0
    for normalize in (False, True):
        method = amg(similarity=root, terms="sim", normalize=normalize)
        eps, state = method(made(x0=black), None)
        assert state.dropped.tolist() == [True, False, False, False]
        assert (eps[0] - made().eps[0]).norm().item() == pytest.approx(2 * 0.6)  # c3 √(1−ᾱ), of a unit vector
        assert torch.equal(eps[1:], method(made(x0=x0), None)[0][1:]) and (eps[1:] > 8.5).all()
        seeds = (0, 7, 8, 9)  # the direction is of seed 0 alone
        assert torch.equal(eps[0], method(made(x0=black, seeds=seeds), None)[0][0])
        assert not torch.equal(eps[0], method(made(x0=black, seeds=(5, 1, 2, 3)), None)[0][0])


@pytest.mark.parametrize("normalize", [False, True])
def test_amg_with_nl2_leaves_an_exact_copy(normalize):
    g = torch.Generator().manual_seed(0)
    bank = TrainingBank.from_tensors(torch.rand(40, 3, 4, 4, generator=g) * 1.6 - 0.8)
    x0 = bank.pictures[:4].double()
    noise = torch.randn(4, 3, 4, 4, generator=g, dtype=torch.float64)
    step = made(x_t=0.8 * x0 + 0.6 * noise, x0=x0, eps=noise, eps_uncond=noise, eps_cond=None)
    method = amg(similarity=NormalizedL2(bank), threshold=Constant(-1.4), terms="sim", normalize=normalize)
    eps, state = method(step, None)
    assert state.flagged.all() and state.dropped.all() and not state.similarity.any()
    moved = (step.predict_x0(eps) - x0).flatten(1).norm(dim=1)
    assert moved.tolist() == pytest.approx([2 * 0.6 * 0.6 / 0.8] * 4)  # c3 (1−ᾱ)/√ᾱ
    assert (NormalizedL2(bank)(step.predict_x0(eps)).value < 0).all()


def test_g_sim_is_left_out_where_the_picture_is_all_noise():
    alpha_bar = torch.tensor([1e-9, 0.64, 0.0, 0.64], dtype=torch.float64)
    eps, state = amg(terms="sim")(made(alpha_bar=alpha_bar), None)
    assert eps[:, 0, 0, 0].tolist() == pytest.approx([8.5, 8.5, 8.5, 8.65])
    assert not state.dropped.any()


CONTEXTS = [torch.no_grad, torch.enable_grad, torch.inference_mode, lambda: torch.inference_mode(False), nullcontext]


@pytest.mark.parametrize("context", CONTEXTS, ids=["no_grad", "enable_grad", "inference", "no inference", "none"])
def test_guidance_is_the_same_in_every_gradient_mode(context):
    expected, _ = amg()(made(), None)
    with context():
        eps, _ = amg()(made(), None)
    assert torch.equal(eps, expected) and not eps.requires_grad


def near_copies(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 4, 4, generator=g) * 1.6 - 0.8
    x0 = (images[:4] + 0.1 * torch.randn(4, 3, 4, 4, generator=g)).to(dtype)
    eps = torch.randn(4, 3, 4, 4, generator=g, dtype=torch.float64).to(dtype)
    alpha_bar = torch.tensor([0.9, 0.5, 0.1, 0.01], dtype=dtype)
    roots = alpha_bar.sqrt().view(-1, 1, 1, 1), (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    step = made(x_t=roots[0] * x0 + roots[1] * eps, x0=x0, eps=eps, eps_uncond=eps, eps_cond=None, alpha_bar=alpha_bar)
    return TrainingBank.from_tensors(images), step


@pytest.mark.parametrize("kind", [NormalizedL2, PCASimilarity])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_small_guided_step_lowers_the_similarity(kind, normalize):
    bank, step = near_copies()
    similarity = kind(bank)
    guidance = AntiMemorizationGuidance(similarity, Always(), c3=1e-4, terms="sim", normalize=normalize)
    before = similarity(step.x0).value
    after = similarity(step.predict_x0(guidance(step, None)[0])).value
    assert (after < before).all()


def test_an_exact_copy_is_guided_without_nan():
    bank, step = near_copies(torch.float32)
    step = made(**vars(step) | {"x0": bank.pictures[:4].clone()})
    for kind in (NormalizedL2, PCASimilarity):
        eps, _ = AntiMemorizationGuidance(kind(bank), Always(), c3=100, terms="sim")(step, None)
        assert eps.isfinite().all()


def test_captions_come_from_the_bank_unless_given():
    g = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 1, 2, generator=g)
    bank = TrainingBank.from_tensors(images, ["e", "f", "g", "h"])
    for captions, expected in ((None, ["e", "f", "g", "h"]), (CAPTIONS, ["a", "b", "c", "d"])):
        calls = []
        guidance = amg(similarity=PCASimilarity(bank), threshold=Always(), c1=0, captions=captions)
        guidance(made(calls, x0=images.double()), None)
        assert calls == [([0, 1, 2, 3], expected)]


def test_plain_functions_serve_as_similarity_and_threshold():
    expected, _ = amg()(made(), None)
    plain = amg(similarity=lambda images: Linear()(images), threshold=lambda t: 0.4)
    assert torch.equal(plain(made(), None)[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_similarity_that_is_not_finite_never_passes_as_not_flagged(value):
    broken = SIGMA.clone()
    broken[2] = value
    with pytest.raises(ValueError, match=r"similarity Linear is -?(nan|inf) for a finite image \(row 2\)"):
        amg(similarity=Linear(broken))(made(), None)
    images = made().x0.clone()
    for diverged in (torch.nan, torch.inf, 1e30):  # a trajectory that diverged has no σ to speak of
        images[2] = diverged
        _, state = amg(similarity=Linear(broken))(made(x0=images), None)
        assert not state.similarity[2].isfinite()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"terms": ("spe", "size")}, "guidance.terms: unknown size; choose among spe, dup, sim"),
        ({"terms": "spe dup"}, "guidance.terms: unknown spe dup"),
        ({"terms": ()}, "guidance.terms: empty; choose among spe, dup, sim"),
        ({"c1": -1}, "guidance.c1 must be >= 0, got -1"),
        ({"c2": -0.5}, "guidance.c2 must be >= 0"),
        ({"c3": float("nan")}, "guidance.c3 must be >= 0, got nan"),
    ],
)
def test_settings_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        amg(**options)


def test_g_dup_without_captions_says_what_to_give():
    with pytest.raises(ValueError, match="guidance.captions: .* give captions="):
        amg(captions=None)(made(), None)


@pytest.mark.parametrize(
    "terms, needs", [("sim", False), (("spe", "sim"), False), ("spe", True), (("spe", "dup"), True)]
)
def test_guidances_that_act_through_the_prompt_alone_need_one(terms, needs):
    assert amg(terms=terms).needs_prompts is needs


def test_an_untouched_guidance_changes_nothing():
    step, guidance = made(), Guidance()
    assert guidance(step, "state") == (step.eps, "state")
    assert guidance.shift(step, step.eps, None, step.x_t) is None
    assert guidance.prompts(("a", "b"), (0, 1)) == ["a", "b"]
    assert guidance.prepare(None, None, "condition", step.x_t, (0,), None) == ("condition", step.x_t)


def test_what_was_flagged_once_is_held_to_the_margin_and_nothing_else_is():
    guidance = amg(threshold=Constant(0.6), margin=0.2, c3=0)  # σ = 0.9, 0.1, 0.5, 0.7: of rows, so no call of some
    _, first = guidance(made(), None)
    assert first.flagged.tolist() == first.ever.tolist() == [True, False, False, True]
    guidance.watch.similarity = Linear(torch.tensor([0.41, 0.59, 0.5, 0.39], dtype=torch.float64))  # all below λ
    eps, second = guidance(made(), first)
    assert second.flagged.tolist() == [True, False, False, False]
    assert second.ever.tolist() == [True, False, False, True]
    assert second.lam.tolist() == pytest.approx([0.4, 0.6, 0.6, 0.4])
    assert torch.equal(eps[1:], made().eps[1:]) and not torch.equal(eps[0], made().eps[0])
    guidance.watch.similarity = Linear(torch.tensor([0.39, 0.59, 0.61, 0.41], dtype=torch.float64))
    _, third = guidance(made(), second)
    assert third.flagged.tolist() == [False, False, True, True]  # the last is still held, though it was let go


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match=r"guidance\.margin must be >= 0"):
        amg(margin=-0.1)
