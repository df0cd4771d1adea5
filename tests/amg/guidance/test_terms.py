"""Eqs. 13–17 against numbers worked out by hand, and the laws that hold for all arguments."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg.guidance import deduplication_scale, despecification_scale, dissimilarity

SIMILARITY = st.floats(-5, 1)
SCALE = st.floats(0, 20)
STRENGTH = st.floats(0, 1000)


def of(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def s1_of(similarity: float, s0: float, c1: float) -> float:
    return despecification_scale(of(similarity), s0, c1).item()


def s2_of(similarity: float, s0: float, s1: float, c2: float) -> float:
    return deduplication_scale(of(similarity), s0, of(s1), c2).item()


@pytest.mark.parametrize(
    "similarity, s0, c1, expected",
    [
        (0.3, 7.5, 13, 3.9),  # c1 σ
        (0.5, 7.5, 13, 6.5),  # both
        (0.9, 7.5, 13, 6.5),  # the cap s0 − 1
        (-1.2, 7.5, 13, 0),  # nL2 is negative: nothing
        (0.9, 1.0, 13, 0),  # no CFG, nothing to take back
        (0.9, 0.5, 13, 0),  # s0 < 1: not −0.5
    ],
)
def test_despecification_scale_is_eq_13(similarity, s0, c1, expected):
    assert s1_of(similarity, s0, c1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "similarity, s0, s1, c2, expected",
    [
        (0.3, 7.5, 3.9, 5, 1.5),  # c2 σ
        (0.3, 7.5, 3.9, 20, 2.6),  # the cap s0 − s1 − 1
        (0.9, 7.5, 6.5, 20, 0),  # G_spe took all
        (-1.2, 7.5, 0, 20, 0),
        (0.9, 0.5, 0, 20, 0),
    ],
)
def test_deduplication_scale_is_eq_15(similarity, s0, s1, c2, expected):
    assert s2_of(similarity, s0, s1, c2) == pytest.approx(expected, abs=1e-12)


def test_scales_are_taken_row_by_row():
    similarity = torch.tensor([0.1, 0.9, -1.0], dtype=torch.float64)
    s1 = despecification_scale(similarity, 4.0, 10)
    s2 = deduplication_scale(similarity, 4.0, s1, 30)
    assert torch.allclose(s1, torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64))
    assert torch.allclose(s2, torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))


def test_scales_take_one_s0_per_row():
    s0 = torch.tensor([7.5, 1.0, 3.0], dtype=torch.float64)
    s1 = despecification_scale(torch.full((3,), 0.5, dtype=torch.float64), s0, 13)
    assert s1.tolist() == pytest.approx([6.5, 0, 2])


def test_dissimilarity_is_eq_17():
    gradient = torch.tensor([[[[1.0, -2.0]]], [[[4.0, 0.0]]]])
    g_sim = dissimilarity(gradient, torch.tensor([0.64, 0.19]), 10)  # √(1−ᾱ) = 0.6 and 0.9
    assert torch.allclose(g_sim, torch.tensor([[[[6.0, -12.0]]], [[[36.0, 0.0]]]]))


def test_dissimilarity_takes_one_c3_per_row():
    g_sim = dissimilarity(torch.ones(2, 1, 1, 1), torch.tensor([0.64, 0.64]), torch.tensor([10.0, 20.0]))
    assert g_sim.flatten().tolist() == pytest.approx([6, 12])


@given(SIMILARITY, SCALE, STRENGTH, STRENGTH)
def test_scales_are_not_negative_and_never_take_more_than_cfg_gave(similarity, s0, c1, c2):
    s1 = s1_of(similarity, s0, c1)
    s2 = s2_of(similarity, s0, s1, c2)
    assert s1 >= 0 and s2 >= 0
    assert s1 + s2 <= max(s0 - 1, 0) + 1e-12


@given(SIMILARITY, SIMILARITY, SCALE, STRENGTH, STRENGTH)
def test_more_similar_samples_lose_no_less(a, b, s0, c1, c2):
    low, high = sorted((a, b))
    assert s1_of(low, s0, c1) <= s1_of(high, s0, c1)
    assert s2_of(low, s0, 0, c2) <= s2_of(high, s0, 0, c2)
    # together too: what G_dup loses to G_spe is what G_spe takes
    both = [s1_of(x, s0, c1) + s2_of(x, s0, s1_of(x, s0, c1), c2) for x in (low, high)]
    assert both[0] <= both[1] + 1e-12


@given(SIMILARITY, SCALE, SCALE, STRENGTH, STRENGTH)
def test_scales_grow_with_the_cfg_scale_and_the_strength(similarity, a, b, c, d):
    (s_low, s_high), (c_low, c_high) = sorted((a, b)), sorted((c, d))
    assert s1_of(similarity, s_low, c_low) <= s1_of(similarity, s_high, c_low)
    assert s1_of(similarity, s_low, c_low) <= s1_of(similarity, s_low, c_high)
    assert s2_of(similarity, s_low, 0, c_low) <= s2_of(similarity, s_high, 0, c_low)
    assert s2_of(similarity, s_low, 0, c_low) <= s2_of(similarity, s_low, 0, c_high)


@given(SIMILARITY, SCALE, SCALE, SCALE, STRENGTH)
def test_g_dup_shrinks_as_g_spe_grows(similarity, s0, a, b, c2):
    low, high = sorted((a, b))
    assert s2_of(similarity, s0, low, c2) >= s2_of(similarity, s0, high, c2)
