"""What `sample` shows a guidance of one step, and how ε, v and x_0 convert."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
from toy import Toy

from amg.guidance import Guidance
from amg.sampling import sample
from amg.schedule import PREDICTION_TYPES, add_eps, from_x0, to_eps, to_x0


def steps_of(model, **options):
    seen = []
    sample(model, [0, 1], steps=4, on_step=lambda step, _: seen.append(step), **options)
    return seen


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_x0_is_the_one_that_the_scheduler_uses(kind, prediction_type, clip_sample):
    options = {"clip_sample": clip_sample, "clip_sample_range": 0.7, "timestep_spacing": "trailing"}  # from ᾱ = 4e-5
    model = Toy(kind(prediction_type=prediction_type, **options))
    scheduler = kind.from_config(model.scheduler.config)
    scheduler.set_timesteps(4)
    for step in steps_of(model):
        output, _ = model(step.x_t, step.timestep, None)
        used = scheduler.step(output, step.timestep, step.x_t).pred_original_sample
        assert torch.allclose(step.x0, used, rtol=1e-4, atol=1e-5)
        assert step.clip == (0.7 if clip_sample else None)


def test_x0_is_not_clipped_by_an_option_of_another_scheduler():
    model = Toy(DDPMScheduler(clip_sample=True))
    step = steps_of(model, scheduler=DPMSolverMultistepScheduler)[0]  # has no such option, keeps it in its config
    assert step.clip is None and step.x0.abs().max() > 1
    assert torch.allclose(step.x0, step.predict_x0(step.eps))


def test_time_runs_from_noise_to_picture_as_a_fraction_of_the_schedule():
    model = Toy(DDIMScheduler(timestep_spacing="linspace"))
    seen = steps_of(model)
    assert torch.stack([step.t for step in seen]).allclose(torch.tensor([[1.0], [0.6667], [0.3333], [0.0]]), atol=1e-3)
    assert [step.alpha_bar[0].item() for step in seen] == [model.scheduler.alphas_cumprod[s.timestep] for s in seen]


def test_alpha_bar_does_not_underflow_in_half_precision():
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    step = steps_of(Toy(scheduler, dtype=torch.bfloat16))[0]  # ᾱ = 2.4e-9, far below float16's smallest
    assert step.x_t.dtype == torch.bfloat16 and step.alpha_bar.dtype == step.t.dtype == torch.float32
    assert 0 < step.alpha_bar[0] < 1e-4 and step.x0.isfinite().all()


class Watch(Guidance):
    def __init__(self, log):
        self.log = log

    def __call__(self, step, state):
        self.log.append(state)
        return step.eps, 0 if state is None else state + 1

    def shift(self, step, eps, state, x_prev):
        return None if step.timestep else torch.full_like(eps, 2.0)


def test_state_starts_as_none_and_comes_back_and_shifts_are_added_after_the_step():
    log, model = [], Toy(DDIMScheduler())
    drawn = sample(model, [0, 1], guidance=Watch(log), steps=4)  # leading spacing: the last timestep is 0
    assert log == [None, 0, 1, 2]
    assert torch.equal(drawn, sample(model, [0, 1], steps=4) + 2)


def test_learned_variance_equals_the_ddpm_pipelines():
    model = Toy(DDPMScheduler(num_train_timesteps=100, variance_type="learned_range"), learned_variance=True)
    pipe = DDPMPipeline(model.unet, model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe(2, generators, num_inference_steps=5, output_type="np").images
    drawn = (sample(model, [0, 1], steps=5) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert (drawn == expected).all() and ((expected > 0) & (expected < 1)).mean() > 0.01


@pytest.mark.parametrize(
    "kind, variance_type",
    [
        (DDIMScheduler, "learned_range"),  # kept in its config, never read
        (DDIMScheduler, "fixed_small"),
        (DDPMScheduler, "fixed_small"),
        (DPMSolverMultistepScheduler, None),
    ],
)
def test_variance_channels_are_left_out_where_the_scheduler_has_no_use_for_them(kind, variance_type):
    class Without(Toy):
        def __call__(self, x_t, timestep, condition):
            return super().__call__(x_t, timestep, condition)[0], None

    scheduler = DDPMScheduler(variance_type=variance_type)
    models = [kind(scheduler, torch.float64, learned_variance=True) for kind in (Toy, Without)]
    drawn = [sample(model, [0, 1], scheduler=kind, steps=4) for model in models]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_conversions_agree_with_the_noising_they_come_from(prediction_type):
    x0, eps, change = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64).unbind(0)
    alpha_bar = torch.tensor([0.9, 0.01], dtype=torch.float64)
    signal, noise = alpha_bar.sqrt().view(-1, 1, 1, 1), (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    x_t = signal * x0 + noise * eps
    velocity = {"v_prediction": signal * eps - noise * x0, "flow_prediction": eps - x0}
    output = ({"epsilon": eps, "sample": x0} | velocity)[prediction_type]
    assert torch.allclose(from_x0(x0, x_t, alpha_bar, prediction_type), output)
    assert torch.allclose(to_eps(output, x_t, alpha_bar, prediction_type), eps)
    assert torch.allclose(to_x0(output, x_t, alpha_bar, prediction_type), x0)
    changed = add_eps(output, change, alpha_bar, prediction_type)
    assert torch.allclose(to_eps(changed, x_t, alpha_bar, prediction_type), eps + change)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow_prediction"])
def test_at_zero_terminal_snr_no_change_is_added_and_nothing_turns_nan(prediction_type):
    output, change = torch.randn(2, 3, 4, 4), torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert torch.equal(add_eps(output, change, torch.zeros(2), prediction_type), output)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="one of epsilon, v_prediction, sample, flow_prediction, got 'flow'"):
        to_eps(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), torch.ones(1), "flow")
