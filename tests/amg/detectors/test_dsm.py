"""DSM by hand, on the trajectory of a toy network with and without CFG, and beside its batch."""

import pytest
import torch
from diffusers import DDIMScheduler
from toy import Toy, made

from amg.detectors import DSM, network_calls, observe, places
from amg.sampling import sample

SEEDS, PROMPTS = [3, 8, 1], ["zero", "one", "two"]


def toy(kind="epsilon"):
    return Toy(DDIMScheduler(prediction_type=kind, clip_sample=False), torch.float64, conditional=True)


def scored(detector, model, seeds=SEEDS, prompts=PROMPTS, s0=1.0, steps=5):
    return detector.score(observe(model, {"it": detector}, seeds, prompts, s0=s0, steps=steps).seen["it"])


def test_it_is_the_square_distance_of_two_predictions_by_hand():
    detector, ones = DSM(), torch.ones(3, 3, 1, 1, dtype=torch.float64)
    first, second = made(eps_cond=0.6 * ones), made(eps_cond=1.6 * ones)
    seen = torch.stack([detector.see(step, None) for step in (first, second)], dim=1)
    assert detector.score(detector.keep(seen)).tolist() == pytest.approx([3.0] * 3)  # three channels, each 1 apart
    assert DSM().see(made(eps_cond=None), None)[0].tolist() == [0.5] * 3  # the only prediction


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("s0", [1.0, 3.0])
@pytest.mark.parametrize("first", [0, 1])
def test_it_takes_the_conditional_prediction_of_two_steps_whatever_the_network_predicts(kind, s0, first):
    steps = []
    sample(toy(), SEEDS, prompts=PROMPTS, s0=s0, steps=5, on_step=lambda step, _: steps.append(step))
    a, b = (step.eps if step.eps_cond is None else step.eps_cond for step in steps[first : first + 2])
    expected = (b - a).square().sum((1, 2, 3))
    torch.testing.assert_close(scored(DSM(first), toy(kind), s0=s0), expected, rtol=1e-5, atol=1e-9)


def test_it_costs_three_calls_without_cfg_and_watches_the_second_and_third_step():
    assert places(DSM(), 50) == ([], range(1, 3))
    assert network_calls(DSM(), 50, s0=1.0) == 3 and network_calls(DSM(first=0), 50, s0=None) == 2


def test_each_score_is_of_its_own_seed_and_no_text_is_needed():
    together = scored(DSM(), toy())
    alone = [scored(DSM(), toy(), [seed], [prompt])[0] for seed, prompt in zip(SEEDS, PROMPTS, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))
    assert scored(DSM(), toy(), prompts=None).shape == (3,)
    assert observe(toy(), {"it": DSM()}, SEEDS, steps=3).seen["it"].shape == (3, 2, 1)  # no images are kept


def test_too_few_steps_and_bad_places_are_refused():
    with pytest.raises(ValueError, match=r"sampler\.steps=2: DSM watches the first 3 steps"):
        places(DSM(), 2)
    with pytest.raises(ValueError, match=r"detector\.dsm\.first"):
        DSM(first=-1)
