"""The loop against diffusers' own pipelines, and what a sample may depend on: its seed."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from toy import Toy

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance
from amg.sampling import sample
from amg.similarity import NormalizedL2
from amg.thresholds import Always, Constant

KINDS = ("epsilon", "v_prediction", "sample")


class Bare(Toy):
    """The network's output as it comes."""

    def __call__(self, x_t, timestep, condition):
        return self.unet(x_t, timestep).sample, None


def bank() -> TrainingBank:
    return TrainingBank.from_tensors(torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def amg(threshold, c3=3.0, **options) -> AntiMemorizationGuidance:
    return AntiMemorizationGuidance(NormalizedL2(bank(), k=5), threshold, c3=c3, normalize=True, **options)


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def as_array(x0: torch.Tensor):
    """The pipelines' own last step."""
    return (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_equals_the_ddpm_pipeline_bit_by_bit():
    model, seeds = Toy(DDPMScheduler()), [3, 1, 4]
    pipe = DDPMPipeline(model.unet, model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(3, generators(seeds), num_inference_steps=6, output_type="np").images
    assert (as_array(sample(model, seeds, steps=6)) == expected).all()
    assert 0.01 < ((expected > 0) & (expected < 1)).mean()  # clipping did not make them equal


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_ddim_pipeline_bit_by_bit(eta, kind):
    # the pipeline calls the bare network: its output serves as ε, v or x_0
    model, seeds = Bare(DDIMScheduler(prediction_type=kind)), [3, 1, 4]
    pipe = DDIMPipeline(model.unet, model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(3, generators(seeds), eta=eta, num_inference_steps=6, output_type="np").images
    assert (as_array(sample(model, seeds, steps=6, eta=eta)) == expected).all()
    assert 0.01 < ((expected > 0) & (expected < 1)).mean()


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("scheduler, eta", [(DDIMScheduler, 0.0), (DDIMScheduler, 1.0), (DDPMScheduler, 0.0)])
def test_equivalent_networks_give_one_chain_whatever_they_predict(scheduler, eta, guided):
    guidance = amg(Always()) if guided else None
    # diffusers keeps ᾱ in float32, hence 1e-6 and not less
    options = {"clip_sample": False, "beta_end": 0.008}
    drawn = [
        sample(
            Toy(scheduler(prediction_type=kind, **options), dtype=torch.float64),
            [0, 1],
            guidance=guidance,
            steps=5,
            eta=eta,
        )
        for kind in KINDS
    ]
    for other in drawn[1:]:
        assert (other - drawn[0]).abs().max() < 1e-5 * drawn[0].abs().max()


@pytest.mark.parametrize("scheduler, eta", [(DDIMScheduler, 0.0), (DDIMScheduler, 1.0), (DDPMScheduler, 0.0)])
def test_a_sample_depends_on_its_seed_alone(scheduler, eta):
    model = Toy(scheduler(), dtype=torch.float64, conditional=True)
    states = []

    def draw(size: int, guidance: AntiMemorizationGuidance) -> torch.Tensor:
        parts = []
        for seeds in torch.arange(64).split(size):
            options = {"steps": 4, "eta": eta, "s0": 2.0, "on_step": lambda _, state: states.append(state)}
            parts.append(sample(model, seeds.tolist(), guidance=guidance, prompts=(seeds % 3).tolist(), **options))
        return torch.cat(parts)

    draw(64, amg(Constant(float("inf"))))
    seen = torch.cat([state.similarity for state in states]).sort().values
    median = seen[len(seen) // 2 - 1 :][:2].mean().item()  # between two values: on one of them rounding decides
    states.clear()
    guidance = amg(Constant(median), c1=2, c2=3)
    whole = draw(64, guidance)
    assert 0.1 < torch.cat([state.flagged for state in states]).double().mean() < 0.9  # some guided, some not
    assert (draw(7, guidance) - whole).abs().max() <= 1e-6
    assert (draw(1, guidance) - whole).abs().max() <= 1e-6


def test_ancestral_noise_follows_the_seed_and_not_the_place_in_the_batch():
    model = Toy(DDPMScheduler(), dtype=torch.float64)
    forward, backward = (sample(model, seeds, steps=4) for seeds in ([0, 1, 2], [2, 1, 0]))
    assert (forward - backward.flip(0)).abs().max() <= 1e-12
    assert (forward[0] - forward[1]).abs().max() > 0.1


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler])
def test_schedulers_that_call_the_network_twice_are_refused_by_name(scheduler):
    with pytest.raises(ValueError, match=f"{scheduler.__name__}.*sample with DDPM, DDIM or DPM-Solver"):
        sample(Toy(DDIMScheduler()), [0], scheduler=scheduler, steps=4)


def test_a_multistep_solver_steps_as_diffusers_has_it_and_the_models_scheduler_is_untouched():
    model = Toy(DDIMScheduler(), torch.float64)
    before = model.scheduler.timesteps.clone()
    drawn = sample(model, [0, 1], scheduler=DPMSolverMultistepScheduler, steps=6)
    assert torch.equal(model.scheduler.timesteps, before)
    solver = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    solver.set_timesteps(6)
    noise = [torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64) for generator in generators([0, 1])]
    x_t = torch.cat(noise)
    for timestep in solver.timesteps:
        x_t = solver.step(model.unet(x_t, timestep).sample, timestep, x_t).prev_sample
    torch.testing.assert_close(drawn, x_t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler, eta", [(DDIMScheduler, 0.0), (DDIMScheduler, 1.0), (DDPMScheduler, 0.0)])
def test_never_flagged_is_unguided_bit_by_bit(kind, scheduler, eta):
    model = Toy(scheduler(prediction_type=kind), conditional=True)
    options = {"prompts": ["zero", "two"], "s0": 3.0, "steps": 5, "eta": eta}
    guided = sample(model, [0, 1], guidance=amg(Constant(1.0), c1=10, c2=10), **options)
    assert torch.equal(guided, sample(model, [0, 1], **options))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unflagged_sample_equals_its_unguided_twin_among_flagged_ones(kind):
    def middle_rests(t):
        return torch.tensor([-torch.inf, torch.inf, -torch.inf])

    model = Toy(DDPMScheduler(prediction_type=kind))
    guided, plain = sample(model, [0, 1, 2], guidance=amg(middle_rests), steps=5), sample(model, [0, 1, 2], steps=5)
    assert torch.equal(guided[1], plain[1])
    assert not torch.equal(guided[0], plain[0]) and not torch.equal(guided[2], plain[2])


def test_plain_conditional_costs_one_network_row_and_cfg_two():
    for s0, cost in ((1.0, 1), (3.0, 2), (0.0, 2)):
        model = Toy(DDIMScheduler(), conditional=True)
        sample(model, [0, 1], prompts=[0, 1], s0=s0, steps=4)
        assert model.rows == 4 * 2 * cost


def test_cfg_is_eq_7():
    model = Toy(DDIMScheduler(), dtype=torch.float64, conditional=True)
    seen = []
    sample(model, [0, 1], prompts=[0, 2], s0=3.0, steps=3, on_step=lambda step, _: seen.append(step))
    for step in seen:
        cond, _ = model(step.x_t, step.timestep, model.encode([0, 2]))
        uncond, _ = model(step.x_t, step.timestep, None)
        assert torch.allclose(step.eps, uncond + 3 * (cond - uncond), atol=1e-12)
        assert torch.allclose(step.eps_cond, cond) and torch.allclose(step.eps_uncond, uncond)
        assert torch.allclose(step.denoise(torch.tensor([1]), ["two"]), cond[1:])
    assert (seen[0].eps - seen[0].eps_cond).abs().max() > 1e-3


def test_s0_of_0_is_unconditional():
    model = Toy(DDIMScheduler(), dtype=torch.float64, conditional=True)
    assert torch.allclose(sample(model, [0, 1], prompts=[0, 2], s0=0.0, steps=4), sample(model, [0, 1], steps=4))


def test_prompts_and_seeds_of_different_number_are_refused():
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        sample(Toy(DDIMScheduler(), conditional=True), [0, 1], prompts=["zero"])
