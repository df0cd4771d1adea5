"""STP, DTP and opposite guidance: hand-worked scales, degenerate settings, any prediction type, any batch."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import stable_diffusion
from toy import Toy, made

from amg.guidance import Chain
from amg.guidance.rivals.jain import DynamicTransitionPoint, OppositeGuidance, StaticTransitionPoint
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.worlds.closed_form import ClosedForm

KINDS = ("epsilon", "v_prediction", "sample")
PROMPTS, SEEDS = ["one", "zero", "two", "one"], [5, 6, 7, 8]


def world(kind="epsilon"):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1)
    return Toy(scheduler, torch.float64, conditional=True)


def drawn(model, guidance=None, s0=3.0, rows=slice(None), **options):
    return sample(model, SEEDS[rows], guidance=guidance, prompts=PROMPTS[rows], s0=s0, steps=4, **options)


def at(norms, **changes):
    """A step with ‖ε_c − ε_u‖ as told: `made` has ε_u = 0.4."""
    step = made()
    delta = torch.tensor(norms, dtype=torch.float64).view(-1, 1, 1, 1) / 3**0.5  # three channels
    return replace(step, eps_cond=step.eps_uncond + delta, eps=step.eps_uncond + 3 * delta, **changes)


def scales(step, eps):
    """The CFG scale that each row was given."""
    return ((eps - step.eps_uncond) / (step.eps_cond - step.eps_uncond))[:, 0, 0, 0].tolist()


def test_a_static_point_drops_the_text_before_it_row_by_row():
    step = at([1.0, 1.0, 1.0], t=torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    eps, _ = StaticTransitionPoint(0.5)(step, None)
    assert scales(step, eps) == pytest.approx([0, 3, 3])
    assert torch.equal(eps[1:], step.eps[1:]), "rows after the point keep their bits"


def test_a_dynamic_point_is_the_first_local_minimum_of_each_chain_and_stays():
    course = [[5, 5, 5], [4, 4, 5], [3, 5, 5], [4, 3, 6], [2, 4, 5], [1, 3, 7]]
    guidance, state, seen = DynamicTransitionPoint(), None, []
    for norms in course:
        step = at([float(norm) for norm in norms])
        eps, state = guidance(step, state)
        seen.append([round(scale) for scale in scales(step, eps)])
    # row 0: 4 > 3 < 4, known at the fourth step; row 1: 5 > 4 < 5 at the third; row 2: 5 = 5 < 6 is none, 6 > 5 < 7 is
    assert seen == [[0, 0, 0], [0, 0, 0], [0, 3, 0], [3, 3, 0], [3, 3, 0], [3, 3, 3]]
    assert state.reached.all() and state.last.tolist() == pytest.approx([2, 4, 5])


@pytest.mark.parametrize("switch", ["stp", "dtp"])
def test_opposite_guidance_points_away_from_the_text_until_the_switch(switch):
    guidance = OppositeGuidance(2.0, switch, until=0.65)
    early = at([1.0, 2.0, 3.0], t=torch.full((3,), 0.7, dtype=torch.float64))
    eps, state = guidance(early, None)
    assert scales(early, eps) == pytest.approx([-2, -2, -2])
    late = at([1.0, 2.0, 3.0], t=torch.full((3,), 0.6, dtype=torch.float64))
    eps, _ = guidance(late, state)
    assert scales(late, eps) == pytest.approx([3, 3, 3] if switch == "stp" else [-2, -2, -2])


def test_they_act_on_top_of_what_came_before_in_a_chain():
    eps, _ = Chain([StaticTransitionPoint(0.0), StaticTransitionPoint(1.0)])(at([1.0, 1.0, 1.0]), None)
    assert torch.allclose(eps, made().eps_uncond)


def test_without_cfg_they_do_nothing():
    step = made(eps_cond=None)
    for guidance in (StaticTransitionPoint(0.0), DynamicTransitionPoint(), OppositeGuidance(switch="dtp")):
        eps, state = guidance(step, None)
        assert eps is step.eps and guidance(step, state)[0] is step.eps


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_at_the_end_is_unconditional_and_one_at_the_start_plain_bit_by_bit(kind):
    model = world(kind)
    torch.testing.assert_close(drawn(model, StaticTransitionPoint(0.0)), drawn(model, s0=0.0), rtol=0, atol=1e-7)
    assert torch.equal(drawn(model, StaticTransitionPoint(1.0)), drawn(model))
    assert torch.equal(drawn(model, OppositeGuidance(5.0, until=1.0)), drawn(model))
    torch.testing.assert_close(drawn(model, OppositeGuidance(2.0, until=0.0)), drawn(model, s0=-2.0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_prediction_type_makes_no_difference(kind):
    for guidance in (StaticTransitionPoint(0.5), DynamicTransitionPoint(), OppositeGuidance(1.0)):
        expected = drawn(world(), guidance)
        # schedulers keep ᾱ in float32, and convert with it
        torch.testing.assert_close(drawn(world(kind), guidance), expected, rtol=0, atol=1e-6 * expected.abs().max())


@pytest.mark.parametrize(
    "guidance",
    [StaticTransitionPoint(0.5), DynamicTransitionPoint(), OppositeGuidance(1.0, "dtp")],
    ids=["s", "d", "o"],
)
def test_a_sample_depends_on_its_seed_alone(guidance):
    model = world()
    four = drawn(model, guidance)
    ones = torch.cat([drawn(model, guidance, rows=slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(ones, four, rtol=0, atol=1e-6)
    assert not torch.equal(four, drawn(model))


@pytest.mark.slow
def test_planted_captions_are_copied_less_without_text_at_the_first_steps():
    model = ClosedForm(size=16)
    prompts = [prompt for prompt in model.world().prompts if model.cause(prompt) != "ordinary"]

    def copies(guidance):
        x0 = sample(model, range(len(prompts)), guidance=guidance, prompts=prompts, s0=3.0, steps=30)
        return int(model.copies(x0).sum())

    assert copies(StaticTransitionPoint(0.5)) < copies(None) / 2


def test_a_guarded_pipeline_gives_what_sample_gives():
    pipe = stable_diffusion(dtype=torch.float64)
    for guidance in (StaticTransitionPoint(0.5), DynamicTransitionPoint()):
        options = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 5.0}
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        guarded = guard(pipe, guidance)(["a", "b"], generator=generators, **options).images
        ours = sample(StableDiffusion(pipe), [1, 2], guidance=guidance, prompts=["a", "b"], s0=5.0, steps=4)
        torch.testing.assert_close(guarded, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: StaticTransitionPoint(500), r"guidance.until must lie in \[0, 1\], got 500"),
        (lambda: OppositeGuidance(-2.0), "guidance.scale must be >= 0, got -2"),
        (lambda: OppositeGuidance(switch="ttp"), "guidance.switch must be stp or dtp, got 'ttp'"),
    ],
)
def test_bad_settings_name_their_key(build, said):
    with pytest.raises(ValueError, match=said):
        build()
