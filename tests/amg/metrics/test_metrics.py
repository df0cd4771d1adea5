"""Shares, tails and alignment against hand-computed values, and all metrics merged over processes."""

import json
import math

import numpy as np
import pytest
import torch

from amg.metrics import Averaged, Counted, Mean, MemorizedShare, Share, TopSimilarity, alignment, top
from amg.metrics.values import Bounds, percent, plain, restored


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# shares


def test_share_of_3_in_10_has_wilsons_interval():
    # centre (p + z²/2n) / (1 + z²/n), half width z √(p(1−p)/n + z²/4n²) / (1 + z²/n), z = 1.959964
    z, n, p = 1.9599639845, 10, 0.3
    centre, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert Share(3, 10).value == 0.3
    low, high = Share(3, 10).interval
    assert low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9) == pytest.approx(0.1078, abs=1e-4)
    assert high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9) == pytest.approx(0.6032, abs=1e-4)


@pytest.mark.parametrize(
    "count, n, low, high",
    # worked by hand as above, for z = 1.96
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (1, 4, 0.0456, 0.6994), (0, 500, 0.0, 0.0076), (0, 0, 0, 1)],
)
def test_interval_is_wilsons(count, n, low, high):
    assert Share(count, n).interval == pytest.approx((low, high), abs=1e-4)


def test_share_of_nothing_is_unknown_not_zero():
    assert Share(0, 0).value is None


@pytest.mark.parametrize("count, n", [(1, 0), (3, 2), (-1, 5)])
def test_impossible_share_is_refused(count, n):
    with pytest.raises(ValueError, match="count"):
        _ = Share(count, n).interval


def test_share_prints_count_and_wilson_interval():
    assert str(Share(0, 512)) == "0/512 (0–0.7 %)"  # z² / (n + z²) = 3.8415 / 515.84
    assert str(Share(512, 512)) == "512/512 (99.3–100 %)"
    assert [percent(p) for p in (0.0, 0.00038, 0.012, 0.99961, 1.0)] == ["0", "0.038", "1.2", "99.96", "100"]


def test_shares_of_disjoint_samples_add():
    assert Share(3, 10) + Share(1, 4) == sum([Share(3, 10), Share(1, 4)], Share(0, 0)) == Share(4, 14)


def test_the_difference_of_shares_has_newcombes_interval():
    """56/70 − 48/80 = 0.20, 95 % interval 0.0524 to 0.3339 (Newcombe 1998, Table II, method 10)."""
    assert tuple(Share(56, 70) - Share(48, 80)) == pytest.approx((0.20, 0.0524, 0.3339), abs=1e-4)


def test_mean_has_the_standard_error_of_its_samples_and_students_interval_over_groups():
    values = normal(40)
    mean = Averaged()(values)
    assert mean.mean == pytest.approx(values.mean().item(), rel=1e-12) and mean.n == 40
    assert mean.se == pytest.approx((values.std() / 40**0.5).item(), rel=1e-9)
    assert mean.half_width == pytest.approx(1.96 * mean.se)
    assert Averaged()(values[:1]).half_width is None
    # t(0.975; 2), s = 1
    assert Mean.over([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert Mean.over([1.0, 3.0]).half_width == pytest.approx(12.7062, rel=1e-5)  # t(0.975; 1) · √2 / √2
    assert Mean.over([1.0]).half_width is None


def test_values_come_back_from_json():
    metrics = {
        "n": 8,
        "copies": Share(1, 8),
        "alignment": Mean(31.5, 8, 0.5),
        "fid": Mean.over([1.0, 3.0]),
        "auc": Bounds(0.9, 0.8, 1.0),
        "by_cause": {"verbatim": {"n": 2, "copies": Share(1, 2), "truth_copies": None}},
        "notes": ["a", "b"],
        "fid_setting": {"n": 8, "extractor": "lite0"},
    }
    written = plain(metrics)
    assert written["copies"] == {"count": 1, "n": 8} and written["alignment"] == {"mean": 31.5, "n": 8, "se": 0.5}
    read = restored(json.loads(json.dumps(written)))
    assert read == metrics
    assert [type(read[key]) for key in ("copies", "alignment", "fid", "auc")] == [Share, Mean, Mean, Bounds]


def test_memorized_is_strictly_beyond_the_threshold():
    memorized = MemorizedShare(threshold=0.5)
    memorized.update(torch.tensor([0.5, 0.50001, 0.2]))
    memorized.update(torch.tensor([0.9]))
    assert memorized.compute() == Share(2, 4)


def test_nl2_below_1_4_is_similarity_above_minus_1_4():
    distance = torch.tensor([0.5, 1.39, 1.41, 2.0])
    assert MemorizedShare(threshold=-1.4)(-distance) == Share(2, 4)


def test_a_diverged_sample_cannot_pass_for_novel():
    with pytest.raises(ValueError, match="1 of 2 similarities are NaN"):
        MemorizedShare(threshold=0.5).update(torch.tensor([0.9, math.nan]))
    with pytest.raises(ValueError, match="NaN"):
        top(torch.tensor([0.9, math.nan]), 5)


# the tail


def test_top5_is_a_percentile_and_not_the_mean_of_the_worst():
    similarity = torch.arange(101) / 100  # 0.00 … 1.00
    assert TopSimilarity(5)(similarity[torch.randperm(101)]) == pytest.approx(0.95)
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
    worst = TopSimilarity(0)
    worst.update(torch.tensor([-1.2, -0.51]))
    worst.update(torch.tensor([-3.0]))
    assert worst.compute() == pytest.approx(-0.51)


# alignment


def test_alignment_is_100_cosine():
    image, text = torch.tensor([[1.0, 0, 0]] * 3), torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1, 1]])
    assert alignment(image, text).tolist() == pytest.approx([100, 0, 100 / math.sqrt(3)])
    assert alignment(torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]])).item() == pytest.approx(-100)


# processes


def halves():
    similarity = torch.rand(20)
    yield MemorizedShare(0.5), [(similarity[:13],), (similarity[13:],)]
    yield Counted(), [(similarity[:13] > 0.5,), (similarity[13:] > 0.5,)]
    yield TopSimilarity(5), [(similarity[:13],), (similarity[13:],)]
    yield Averaged(), [(similarity[:13],), (similarity[13:],)]


def test_two_processes_states_merge_into_one_processs_result():
    for metric, updates in halves():
        ranks = [metric.clone(), metric.clone()]
        for i, update in enumerate(updates):
            metric.update(*update)
            ranks[i % 2].update(*update)
        ranks[0].merge_state(ranks[1])
        assert ranks[0].compute() == pytest.approx(metric.compute(), rel=1e-9)
