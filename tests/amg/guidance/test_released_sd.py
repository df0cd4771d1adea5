"""ReleasedSD against numbers worked by hand, with linear similarities whose gradient is known."""

import math

import pytest
import torch

from amg.bank import TrainingBank
from amg.guidance.rivals.released_sd import ReleasedSD
from amg.similarity.base import Match
from amg.step import Step

SHAPE = (3, 1, 1)


class Linear:
    """σ = first pixel of x̂0, the neighbour always picture 0; ∇σ = (1, 0, 0)."""

    def __init__(self, captions, images=None):
        images = torch.linspace(-1, 1, 3 * len(captions)).view(-1, *SHAPE) if images is None else images
        self.bank = TrainingBank.from_tensors(images, captions)

    def __call__(self, images):
        return Match(images[:, 0, 0, 0], torch.zeros(len(images), dtype=torch.long))

    def neighbours(self, images, k):
        return self.bank.search(images, k)[1]


def step(sigma, t=0.5, alpha_bar=0.64, s0=7.5, calls=None, cond=1.0, eps=0.0):
    """x̂0 = (σ, 0, 0); ε_u = 0, ε_c = cond, ε_N = 10 everywhere."""
    sigma = torch.tensor(sigma, dtype=torch.float64)
    b = len(sigma)
    x0 = torch.zeros(b, *SHAPE, dtype=torch.float64)
    x0[:, 0, 0, 0] = sigma
    eps = torch.full_like(x0, eps)

    def denoise(rows, captions):
        if calls is not None:
            calls.append((rows.tolist(), list(captions)))
        return torch.full((len(rows), *SHAPE), 10.0, dtype=torch.float64)

    return Step(
        x_t=math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps,
        t=torch.full((b,), t, dtype=torch.float64),
        timestep=0,
        alpha_bar=torch.full((b,), alpha_bar, dtype=torch.float64),
        eps=eps,
        eps_uncond=torch.zeros_like(x0),
        eps_cond=torch.full_like(x0, cond),
        s0=s0,
        seeds=tuple(range(b)),
        x0=x0,
        denoise=denoise,
        decode=lambda x: x,
    )


def close(got, expected):
    torch.testing.assert_close(got.flatten().double(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("t, expected", [(0, 0.4), (100, 0.36065), (999, 0.30068)])
def test_the_threshold_is_the_released_curve(t, expected):
    guidance = ReleasedSD(Linear(["a", "b"]))
    assert guidance.threshold(t / 999) == pytest.approx(expected, abs=1e-5)


def test_despecification_acts_below_the_threshold_too_but_not_at_negative_similarity():
    eps, state = ReleasedSD(Linear(["a", "b"]), c3=0)(step([0.1, 0.45, 0.9, -0.2]), None)
    close(state.s1, [1.3, 5.85, 6.5, 0.0])  # min(13 σ, 6.5)
    close(eps[:, 1, 0, 0], [-1.3, -5.85, -6.5, 0.0])
    assert state.flagged.tolist() == [False, True, True, False]
    _, gated = ReleasedSD(Linear(["a", "b"]), c3=0, gated=True)(step([0.1, 0.45]), None)
    close(gated.s1, [0.0, 5.85])


def test_deduplication_needs_a_caption_that_occurs_often_enough():
    captions = ["twice"] * 21 + ["once"]
    images = torch.linspace(-1, 1, 66).view(-1, *SHAPE)
    calls = []
    guidance = ReleasedSD(Linear(captions, images), c1=1.0, c3=0)
    _, state = guidance(step([0.45, 0.1], calls=calls), None)
    close(state.s2, [min(6.5 - 0.45, (6.5 - 0.45) / 0.3 * 0.45), 0.0])  # the second is below the threshold
    assert calls == [([0], ["twice"])]
    assert state.hold.tolist() == [10, 0]
    calls.clear()
    _, state = ReleasedSD(Linear(captions[1:], images[1:]), c1=1.0, c3=0)(step([0.45], calls=calls), None)  # 20 times
    assert calls == [] and state.s2.item() == 0 and state.hold.item() == 0


def test_repeats_of_one_picture_count_as_often_as_they_occur():
    images = torch.linspace(-1, 1, 6).view(-1, *SHAPE)[[0] * 21 + [1]]
    _, state = ReleasedSD(Linear(["repeated"] * 21 + ["other"], images), c1=0.0, c3=0)(step([0.45]), None)
    assert state.s2.item() > 0


def test_deduplication_stays_armed_for_ten_further_steps():
    images = torch.linspace(-1, 1, 66).view(-1, *SHAPE)
    guidance = ReleasedSD(Linear(["again"] * 22, images), c1=1.0, c3=0)
    _, state = guidance(step([0.45]), None)
    acted = []
    for _ in range(12):
        _, state = guidance(step([0.06]), state)
        acted.append(state.s2.item() > 0)
    assert acted == [True] * 10 + [False] * 2
    assert state.caption.item() == -1


def test_dissimilarity_is_measured_after_the_other_two_and_grows_as_t_falls():
    guidance = ReleasedSD(Linear(["a", "b"]), c1=0.0)
    t = 500 / 999
    eps, state = guidance(step([0.45, 0.2], t=t), None)
    # c3 √(1−ᾱ) (1/√ᾱ) (σ − 0.3) exp((1000 − t)/170)
    expected = 100 * 0.6 / 0.8 * 0.15 * math.exp(500 / 170)
    close(eps[0], [expected, 0.0, 0.0])
    close(eps[1], [0.0, 0.0, 0.0])
    close(state.sim, [expected, 0.0])
    # ε_c makes G_spe lower x̂0's first pixel here, so that σ is no longer above λ
    eased = ReleasedSD(Linear(["a", "b"]), c1=1.0)
    _, state = eased(step([0.45], t=t, cond=-1.0), None)
    close(state.after, [0.45 - 0.75 * 0.45])
    assert state.sim.item() == 0 and state.flagged.item()
    _, once = ReleasedSD(Linear(["a", "b"]), c1=1.0, remeasure=False)(step([0.45], t=t, cond=-1.0), None)
    assert once.sim.item() > 0


def test_its_options_lead_back_to_the_paper():
    """With every departure undone it is AntiMemorizationGuidance."""
    from amg.guidance import AntiMemorizationGuidance
    from amg.thresholds import Constant

    similarity = Linear(["a", "b"])
    undone = {"gated": True, "divisor": None, "neighbours": 1, "count": 0, "hold": 0, "remeasure": False, "base": None}
    strengths = {"c1": 2.0, "c2": 3.0, "c3": 5.0}
    seen = step([0.45, 0.2, 0.9])
    # the nearest in pixel space of every x̂0 is made picture 0, which Linear says as well
    similarity.neighbours = lambda images, k: torch.zeros(len(images), k, dtype=torch.long)
    got, _ = ReleasedSD(similarity, Constant(0.3), **undone, **strengths)(seen, None)
    expected, _ = AntiMemorizationGuidance(similarity, Constant(0.3), **strengths)(seen, None)
    torch.testing.assert_close(got, expected)


def test_a_similarity_without_neighbours_is_refused():
    with pytest.raises(ValueError, match="needs one that lists neighbours"):
        ReleasedSD(lambda images: None)
