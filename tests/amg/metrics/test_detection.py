"""ROC, AUC and TPR at a low FPR, on scores small enough to be counted by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from amg.metrics.detection import auc, auc_interval, positives_at, roc
from amg.metrics.values import Share

SCORES = torch.tensor([5.0, 4.0, 4.0, 2.0, 1.0])
TRUTH = torch.tensor([True, True, False, False, True])


def test_roc_falls_through_equal_scores_at_once():
    false, true = roc(SCORES, TRUTH)
    assert false.tolist() == [0, 0, 1, 2, 2] and true.tolist() == [0, 1, 2, 2, 3]


def test_auc_counts_pairs_and_ties_as_half():
    # memorized 5, 4, 1 against ordinary 4, 2: wins 5>4, 5>2, 4>2, one tie, of six pairs
    assert auc(SCORES, TRUTH) == pytest.approx(3.5 / 6)
    assert auc(torch.tensor([2.0, 1.0]), torch.tensor([True, False])) == 1
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([True, False])) == 0
    assert auc(torch.ones(7), torch.arange(7) < 3) == 0.5


@given(st.integers(0, 10_000), st.integers(2, 30))
def test_auc_is_torchmetrics_and_the_share_of_pairs(seed, n):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (n,), generator=generator).double()
    truth = torch.randint(0, 2, (n,), generator=generator).bool()
    truth[0], truth[1] = True, False
    pairs = scores[truth][:, None] - scores[~truth]
    assert auc(scores, truth) == pytest.approx(((pairs > 0).double() + (pairs == 0).double() / 2).mean().item())
    # torchmetrics wants probabilities
    assert auc(scores, truth) == pytest.approx(binary_auroc(scores.float() / 6, truth.int()).item(), abs=1e-6)


def test_positives_at_a_rate_lie_above_all_but_that_share_of_the_ordinary():
    ordinary, memorized = torch.arange(100.0), torch.tensor([99.5, 98.5, 97.5, 0.5])
    scores = torch.cat([ordinary, memorized])
    truth = torch.arange(104) >= 100
    assert [positives_at(scores, truth, rate) for rate in (0.0, 0.01, 0.02, 0.019, 1.0)] == [1, 2, 3, 2, 4]
    # a memorized sample that ties with the last ordinary one allowed is no find
    assert positives_at(torch.tensor([1.0, 1.0]), torch.tensor([True, False])) == 0


@pytest.mark.parametrize(
    "scores, truth, said",
    [
        ([1.0, float("nan")], [True, False], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [True, True], "both memorized and ordinary"),
        ([1.0, 2.0], [False, False], "both memorized and ordinary"),
    ],
)
def test_scores_that_say_nothing_are_refused(scores, truth, said):
    with pytest.raises(ValueError, match=said):
        auc(torch.tensor(scores), torch.tensor(truth))


def test_interval_of_one_pair_is_wilsons_of_one_trial():
    for area in (0, 1):
        assert auc_interval(area, 1, 1) == pytest.approx(Share(area, 1).interval, abs=1e-6)


def test_interval_holds_the_area_shrinks_with_n_and_never_to_a_point():
    for area in (0.0, 0.02, 0.5, 0.93, 1.0):
        widths = []
        for n in (5, 50, 500):
            low, high = auc_interval(area, n, n)
            assert 0 <= low <= area <= high <= 1
            widths.append(high - low)
        assert widths[0] > widths[1] > widths[2] > 0
    low, high = auc_interval(0.5, 40, 40)
    assert low + high == pytest.approx(1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    truth, held = torch.arange(60) < 30, 0
    area = torch.special.ndtr(torch.tensor(1.5 / 2**0.5)).item()  # of normal scores 1.5 apart
    for _ in range(300):
        scores = torch.randn(60, generator=generator) + 1.5 * truth
        low, high = auc_interval(auc(scores, truth), 30, 30)
        held += low <= area <= high
    assert 0.92 <= held / 300 <= 0.99
