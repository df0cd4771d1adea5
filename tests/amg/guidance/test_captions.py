"""G_dup armed by captions that many neighbours share."""

import warnings
from dataclasses import replace

import pytest
import torch
from toy import made

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance
from amg.guidance.captions import CommonCaption
from amg.similarity import Match, PCASimilarity
from amg.step import Step
from amg.thresholds import Constant

SHAPE = (3, 1, 1)


class Line:
    """Picture n is n/20 everywhere; σ = 0.5, the nearest by its first value."""

    def __init__(self, captions, repeats=None):
        images = torch.cat([torch.full((1, *SHAPE), n / 20) for n in range(len(captions))])
        repeats = repeats or [1] * len(captions)
        listed = [[caption, *[""] * (n - 1)] for caption, n in zip(captions, repeats, strict=True)]
        self.bank = TrainingBank.from_tensors(images, listed)

    def __call__(self, images):
        return Match(images.new_full((len(images),), 0.5), self.neighbours(images, 1)[:, 0])

    def neighbours(self, images, k):
        return self.bank.search(images, k)[1]


def step(values, calls):
    """x̂0 as given; ε_u = 0, ε_N = 10 everywhere; s0 = 7.5."""
    x0 = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SHAPE).clone()

    def denoise(rows, captions):
        calls.append((rows.tolist(), list(captions)))
        return torch.full((len(rows), *SHAPE), 10.0)

    return Step(
        x_t=x0, t=torch.full((len(x0),), 0.5), timestep=500, alpha_bar=torch.full((len(x0),), 0.64), eps=0 * x0,
        eps_uncond=0 * x0, eps_cond=0 * x0 + 1, s0=7.5, seeds=tuple(range(len(x0))), x0=x0, denoise=denoise,
        decode=lambda x: x,
    )  # fmt: skip


def amg(similarity, **options):
    return AntiMemorizationGuidance(similarity, Constant(0.4), c2=4.0, terms="dup", **options)


CAPTIONS = ["a", "twice", "twice", "b", "", "c", "thrice", "thrice", "d", "thrice"]


def test_by_default_the_nearest_images_caption_arms_and_none_does_not():
    calls = []
    _, state = amg(Line(CAPTIONS))(step([0.0, 0.06, 0.2], calls), None)
    assert calls == [([0, 1], ["a", "twice"])]
    assert state.s2.tolist() == [2.0, 2.0, 0.0]  # 4 · 0.5
    assert state.dup[2] == 0 and (state.dup[:2] > 0).all()


@pytest.mark.parametrize("options", [{}, {"captions": [None] * 10}, {"neighbours": 4, "count": 1}])
def test_a_bank_without_captions_is_reported_at_the_first_step_and_gets_no_g_dup(options):
    calls, plain = [], Line([""] * 10)
    with pytest.warns(UserWarning, match="no training image has a caption: G_dup does nothing"):
        eps, state = amg(plain, **options)(step([0.0, 0.06], calls), None)
    assert not calls and not state.s2.any() and not eps.any()
    assert not amg(plain, **options).embeds_captions and amg(Line(CAPTIONS)).embeds_captions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        amg(plain, **options)(step([0.0, 0.06], calls), state)  # not again at later steps
        amg(plain, **options)(replace(step([0.0], calls), eps_cond=None), None)  # nor where G_dup cannot act


def test_g_dup_without_captions_to_ask_is_refused_at_the_first_step_flagged_or_not():
    guidance = AntiMemorizationGuidance(
        lambda x: Match(x.flatten(1).sum(1), torch.zeros(len(x)).long()), Constant(9.0), c2=1.0
    )
    with pytest.raises(ValueError, match="give captions="):
        guidance(step([0.0], []), None)


def test_a_caption_that_more_than_count_neighbours_share_arms_and_is_the_one_steered_away_from():
    calls = []
    guidance = amg(Line(CAPTIONS), neighbours=4, count=1)
    # neighbours of 0.0: 0 1 2 3, "twice" twice; of 0.22: 4 5 3 6, no caption twice; of 0.40: 8 7 9 6, "thrice"
    eps, state = guidance(step([0.0, 0.22, 0.4], calls), None)
    assert calls == [([0, 2], ["twice", "thrice"])]
    assert state.s2.tolist() == [2.0, 0.0, 2.0]
    assert eps[:, 0, 0, 0].tolist() == [-20.0, 0.0, -20.0]  # − s2 (ε_N − ε_u)
    calls.clear()
    _, state = amg(Line(CAPTIONS), neighbours=4, count=2)(step([0.0, 0.22, 0.4], calls), None)
    assert calls == [([2], ["thrice"])]
    calls.clear()
    _, state = amg(Line(CAPTIONS), neighbours=4, count=3)(step([0.0, 0.22, 0.4], calls), None)
    assert calls == [] and state.s2.tolist() == [0.0] * 3


def test_each_row_is_armed_for_itself():
    values = [0.0, 0.22, 0.4, 0.11]
    guidance = amg(Line(CAPTIONS), neighbours=4, count=1)
    whole, _ = guidance(step(values, []), None)
    alone = torch.cat([guidance(step([value], []), None)[0] for value in values])
    torch.testing.assert_close(whole, alone)


def test_repeats_of_one_picture_count_as_often_as_they_occur():
    for repeats, armed in ((20, False), (21, True)):
        _, state = amg(Line(["again", "b"], [repeats, 1]), neighbours=1000, count=20)(step([0.0], []), None)
        assert (state.s2.item() > 0) == armed


def test_ones_own_captions_are_counted_instead_of_the_banks():
    calls = []
    guidance = amg(Line(CAPTIONS), neighbours=3, count=1, captions=["own"] * 3 + ["other"] * 7)
    guidance(step([0.0, 0.4], calls), None)
    assert calls == [([0, 1], ["own", "other"])]


def test_without_captions_nothing_is_armed():
    calls = []
    _, state = amg(Line([""] * 5), neighbours=3)(step([0.0], calls), None)
    assert calls == [] and state.s2.item() == 0


def test_counting_by_hand():
    common = CommonCaption([("a", "b"), ("b",), (), ("a",)], torch.tensor([4, 1, 9, 1]), count=1)
    assert common.any and not CommonCaption([(), ("",)], torch.ones(2), 1).any
    near = torch.tensor([[0, 1], [1, 2], [0, 3], [1, 3]])
    # 0 and 1: a 1 + 2 (repeats whose caption is not known), b 2.  1 and 2: b 1.  0 and 3: a 4.  1 and 3: one each
    assert common(near).tolist() == [0, -1, 0, -1]


def test_a_real_similarity_lists_its_neighbours():
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bank = TrainingBank.from_tensors(images, [f"{i % 2}" for i in range(40)])
    similarity = PCASimilarity(bank, 16)
    guidance = AntiMemorizationGuidance(similarity, Constant(-2), c2=1, terms="dup", neighbours=11, count=5)
    rows = torch.arange(5)
    step = made(x0=images[:5], t=torch.full((5,), 0.5), seeds=tuple(range(5)), decode=lambda x0: x0)
    armed, captions = guidance._captions(step, rows, similarity(images[:5]).index)
    near = similarity.neighbours(images[:5], 11)
    assert armed.all() and captions == [str(int((row % 2).float().mean().round())) for row in near]


@pytest.mark.parametrize("options, said", [({"neighbours": 0}, "neighbours must be >= 1"), ({"count": -1}, "count >=")])
def test_numbers_without_meaning_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        amg(Line(CAPTIONS), **options)


def test_a_similarity_that_lists_no_neighbours_is_refused():
    with pytest.raises(ValueError, match="guidance.neighbours: .* lists neighbours"):
        amg(lambda images: None, neighbours=5)
