"""Schedules λ_t against released values and worked-out numbers."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg.thresholds import Always, Calibrated, Constant, Exponential, Parabolic

RELEASED_SD = Exponential(start=0.4, end=0.3, rate=0.005 * 999)
THRESHOLDS = [
    Always(),
    Constant(0.4),
    Parabolic(start=0.5, end=0.3),
    RELEASED_SD,
    Calibrated(times=[0.1, 0.2, 0.6], values=[-1.0, -2.0, -1.5]),
]
IDS = [type(threshold).__name__ for threshold in THRESHOLDS]


@pytest.mark.parametrize("t, expected", [(0, 0.4), (100, 0.36065), (999, 0.30068)])
def test_exponential_gives_the_released_stable_diffusion_values(t, expected):
    # released code: a − (a − b) exp(−c t) with a = 0.3, b = 0.4, c = 0.005, t in 0 … 999
    assert RELEASED_SD(t / 999) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("t, expected", [(0, -1.5), (10, -1.59954), (249, -1.94911)])
def test_exponential_gives_the_released_cifar_values(t, expected):
    # distances 1.95 − 0.45 exp(−0.025 t), t in 0 … 249; negated as nL2 is (Eq. 8)
    assert Exponential(start=-1.5, end=-1.95, rate=0.025 * 249)(t / 249) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("t, expected", [(0, 0.5), (0.5, 0.45), (1, 0.3)])
def test_parabolic_is_quadratic_between_its_ends(t, expected):
    assert Parabolic(start=0.5, end=0.3)(t) == pytest.approx(expected)


@pytest.mark.parametrize(
    "t, expected", [(0, -1.0), (0.1, -1.0), (0.15, -1.5), (0.2, -2.0), (0.3, -1.875), (0.6, -1.5), (1, -1.5)]
)
def test_calibrated_is_linear_between_its_knots_and_level_outside(t, expected):
    assert Calibrated(times=[0.1, 0.2, 0.6], values=[-1.0, -2.0, -1.5])(t) == pytest.approx(expected)


def test_calibrated_with_one_knot_is_constant():
    assert [Calibrated([0.5], [0.7])(t) for t in (0, 0.5, 1)] == [0.7, 0.7, 0.7]


@pytest.mark.parametrize("times, values", [([0.1, 0.2], [1.0]), ([], []), ([0.2, 0.1], [1.0, 2.0]), ([0, 0], [1, 2])])
def test_calibrated_refuses_what_is_no_curve(times, values):
    with pytest.raises(ValueError, match="times"):
        Calibrated(times, values)


def test_always_lies_below_any_similarity_and_constant_is_level():
    for t in (0.0, 0.3, 1.0):
        assert Always()(t) == -math.inf
        assert Constant(0.4)(t) == 0.4


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_times_gives_what_its_numbers_give(threshold, dtype):
    t = torch.tensor([0.0, 0.05, 0.1, 0.17, 0.5, 1.0], dtype=dtype)
    values = threshold(t)
    assert values.shape == t.shape and values.dtype == dtype
    assert values.tolist() == pytest.approx([threshold(one) for one in t.tolist()], rel=1e-6)
    assert threshold(t[3]).item() == pytest.approx(threshold(t[3].item()), rel=1e-6)  # 0-dim too


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=IDS)
def test_thresholds_survive_pickling(threshold):
    twin = pickle.loads(pickle.dumps(threshold))
    assert twin == threshold and twin(0.3) == threshold(0.3)


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=IDS)
def test_thresholds_cannot_be_changed_after_they_are_made(threshold):
    with pytest.raises(AttributeError):
        threshold.value = 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 10))
def test_published_schedules_run_monotonically_from_start_towards_end(a, b, start, end, rate):
    early, late = sorted((a, b))
    for threshold in (Parabolic(start, end), Exponential(start, end, rate)):
        assert threshold(0) == pytest.approx(start, abs=1e-12)
        assert abs(threshold(late) - start) >= abs(threshold(early) - start) - 1e-12
        assert min(start, end) - 1e-12 <= threshold(late) <= max(start, end) + 1e-12


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6), st.floats(-0.5, 1.5))
def test_calibrated_stays_within_its_values(values, t):
    curve = Calibrated([i / len(values) for i in range(len(values))], values)
    assert min(values) - 1e-12 <= curve(t) <= max(values) + 1e-12
