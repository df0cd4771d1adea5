"""Learning λ_t, on traces small enough to be counted by hand."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg.sampling.ordinary import calibrate

TIMES = torch.tensor([1.0, 0.5])  # as sampled: from noise to picture
TRACES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [14.0, 13.0, 12.0, 11.0]])
EXPECTED = [
    (0.5, [3.0, 13.0], 0.5),  # chain 4 exceeds 3 at noise, chain 1 exceeds 13 at the picture
    (0.75, [3.0, 13.0], 0.5),  # (2, 12) flags all four
    (0.4, [4.0, 14.0], 0.0),
]
UNCAPPED = float("inf")


@pytest.mark.parametrize("rate, curve, learned", EXPECTED)
def test_curve_is_the_lowest_of_equal_quantiles_that_keeps_the_rate(rate, curve, learned):
    found = calibrate(TIMES, TRACES, TRACES, rate, cap=UNCAPPED)
    assert found.threshold.times == (0.5, 1.0)  # increasing, whatever the order of sampling
    assert found.threshold.values == tuple(curve[::-1])
    assert found.learned == found.held_out == learned


def test_held_out_chains_are_counted_by_chain_and_not_by_step():
    held_out = torch.tensor([[5.0, 0.0, 9.0, 0.0, 0.0], [15.0, 0.0, 0.0, 14.5, 14.0]])
    found = calibrate(TIMES, TRACES, held_out, 0.1, cap=UNCAPPED)  # curve (4, 14): chains 1, 3 and 4 of 5
    assert found.held_out == pytest.approx(0.6)


def test_the_cap_bounds_the_curve_and_its_cost_is_told():
    found = calibrate(TIMES, TRACES, TRACES, 0.1, cap=12.5)
    assert found.threshold.values == (12.5, 4.0)
    assert found.learned == found.held_out == 0
    assert found.held_out_capped == 0.5  # 14 and 13 exceed 12.5


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_without_meaning_is_refused(rate):
    with pytest.raises(ValueError, match=r"calibrate.rate must lie in \(0, 1\)"):
        calibrate(TIMES, TRACES, TRACES, rate, cap=1.0)


@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.01, 0.99))
def test_the_rate_is_kept_on_the_chains_learned_on_and_the_next_lower_curve_would_break_it(seed, n, rate):
    traces = torch.randn(5, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    times = torch.linspace(1, 0, 5)
    found = calibrate(times, traces, traces, rate, cap=UNCAPPED)
    assert found.learned <= rate

    def flagged(place: int) -> float:
        curve = [sorted(step)[place] for step in traces.tolist()]
        return sum(any(chain[s] > curve[s] for s in range(5)) for chain in traces.T.tolist()) / n

    place = next(p for p in range(n) if flagged(p) <= rate)
    expected = [sorted(step)[place] for step in traces.tolist()][::-1]
    assert found.threshold.values == pytest.approx(expected, abs=1e-6)
    assert found.learned == pytest.approx(flagged(place))
    # what is learned is what the threshold flags, up to its six decimals
    at = torch.tensor([found.threshold(t) for t in times.tolist()]).double()
    assert (traces > at[:, None] + 1e-6).any(0).double().mean() <= rate


@pytest.mark.slow
def test_what_is_learned_is_what_threshold_calibrated_reads(tmp_path, monkeypatch):
    from amg.guidance import presets
    from experiments.cli.main import main
    from experiments.tasks import calibrate as task

    for module in (presets, task):  # not into the project while it is tested
        monkeypatch.setattr(module, "CURVES", tmp_path / "curves")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        presets.threshold("closed_form", "nl2", kind="calibrated")
    assert main(["task=calibrate", "conditioning=none", "s0=1", "n_samples=60", "sampler.steps=3", "trainer=cpu"]) == 0
    (file,) = (tmp_path / "curves").iterdir()
    learned = presets.threshold("closed_form", file.stem.split("-")[1], kind="calibrated")
    assert len(learned.times) == 3 and learned.values == json.loads(file.read_text())["values"]
