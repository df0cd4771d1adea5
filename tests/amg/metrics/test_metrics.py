"""Shares, tails and alignment against hand-computed values, and all metrics merged over processes."""

import math

import numpy as np
import pytest
import torch

from amg.metrics import AlignmentScore, FrechetDistance, MemorizedShare, Top1, Top5, alignment, share, top
from amg.metrics.extractors import Extractor


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def colours():
    """The mean colour and its square: a real extractor small enough for a closed form."""

    def network(pixels):
        mean = pixels.mean((2, 3)) / 255
        return torch.cat([mean, mean.square()], 1)

    return Extractor("colours", "none", 6, network)


# shares


def test_share_of_3_in_10_has_wilsons_interval():
    # centre (p + z²/2n) / (1 + z²/n), half width z √(p(1−p)/n + z²/4n²) / (1 + z²/n), z = 1.959964
    z, n, p = 1.9599639845, 10, 0.3
    centre, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    result = share(3, 10)
    assert result["share"] == 0.3
    assert (
        result["low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9) == pytest.approx(0.1078, abs=1e-4)
    )
    assert (
        result["high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9) == pytest.approx(0.6032, abs=1e-4)
    )


def test_no_copies_of_500_still_leave_room_for_0_76_percent():
    result = share(0, 500)
    assert result["low"] == 0 and result["high"] == pytest.approx(0.0076, abs=5e-5)


def test_share_of_nothing_is_unknown_not_zero():
    assert share(0, 0) == {"count": 0, "n": 0, "share": None, "low": 0.0, "high": 1.0}


def test_memorized_is_strictly_beyond_the_threshold():
    memorized = MemorizedShare(threshold=0.5)
    memorized.update(torch.tensor([0.5, 0.50001, 0.2]))
    memorized.update(torch.tensor([0.9]))
    result = memorized.compute()
    assert (result["count"], result["n"], result["threshold"]) == (2, 4, 0.5)


def test_nl2_below_1_4_is_similarity_above_minus_1_4():
    distance = torch.tensor([0.5, 1.39, 1.41, 2.0])
    memorized = MemorizedShare(threshold=-1.4)
    memorized.update(-distance)
    assert memorized.compute()["count"] == 2


def test_a_diverged_sample_cannot_pass_for_novel():
    with pytest.raises(ValueError, match="1 of 2 similarities are NaN"):
        MemorizedShare(threshold=0.5).update(torch.tensor([0.9, math.nan]))
    with pytest.raises(ValueError, match="NaN"):
        top(torch.tensor([0.9, math.nan]), 5)


# the tail


def test_top5_is_a_percentile_and_not_the_mean_of_the_worst():
    similarity = torch.arange(101) / 100  # 0.00 … 1.00
    worst = Top5()
    worst.update(similarity[torch.randperm(101)])
    assert worst.compute()["value"] == pytest.approx(0.95)
    assert similarity[similarity >= 0.95].mean() == pytest.approx(0.975)


def test_top5_of_negated_nl2_is_the_fifth_percentile_of_distance():
    distance = normal(200).exp()
    assert -top(-distance, 5) == pytest.approx(np.percentile(distance.numpy(), 5), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 199])
@pytest.mark.parametrize("percent", [0, 5, 50, 100])
def test_top_equals_numpys_percentile(n, percent):
    values = normal(n)
    assert top(values, percent) == pytest.approx(np.percentile(values.numpy(), 100 - percent), rel=1e-12)


def test_top1_is_the_largest():
    worst = Top1()
    worst.update(torch.tensor([-1.2, -0.51]))
    worst.update(torch.tensor([-3.0]))
    assert worst.compute()["value"] == pytest.approx(-0.51) and worst.compute()["n"] == 3


# alignment


class ColourScorer:
    """Embeds a picture as its mean colour and a colour's name as itself."""

    def image(self, pictures):
        return (pictures.mean((2, 3)) + 1) / 2

    def text(self, texts):
        return torch.tensor([{"red": [1.0, 0, 0], "green": [0, 1.0, 0], "white": [1.0, 1, 1]}[text] for text in texts])


def test_alignment_is_100_cosine():
    pictures = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(3, 3, 4, 4)  # red
    score = AlignmentScore(ColourScorer(), "colour")
    score.update(pictures, ["red", "green", "white"])
    assert score.compute() == {
        "value": pytest.approx((100 + 0 + 100 / math.sqrt(3)) / 3),
        "n": 3,
        "extractor": "colour",
        "resize": "none",
    }
    assert alignment(torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]])).item() == pytest.approx(-100)


# processes


def halves():
    pictures, reference = (torch.rand(20, 3, 8, 8) * 2 - 1 for _ in range(2))
    similarity = torch.rand(20)
    yield MemorizedShare(0.5), [(similarity[:13],), (similarity[13:],)]
    yield Top5(), [(similarity[:13],), (similarity[13:],)]
    yield FrechetDistance(colours()), [(pictures[:5],), (pictures[5:],), (reference[:9], True), (reference[9:], True)]
    yield AlignmentScore(ColourScorer(), "colour"), [(pictures[:5], ["red"] * 5), (pictures[5:], ["white"] * 15)]


def test_two_processes_states_merge_into_one_processs_result():
    for metric, updates in halves():
        ranks = [metric.clone(), metric.clone()]
        for i, update in enumerate(updates):
            metric.update(*update)
            ranks[i % 2].update(*update)
        ranks[0].merge_state(ranks[1])
        got, want = ranks[0].compute(), metric.compute()
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert got[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
