"""A pipeline of diffusers as a model: sampled by itself under guard, from a folder without T5."""

import pytest
import torch
from guarded import PROMPTS, SEEDS, amg, call
from tiny_pipelines import stable_diffusion, stable_diffusion_3

from amg.detectors import observe
from amg.detectors.magnitude import Magnitude
from amg.guidance.rivals.somepalli import GaussianNoiseInput
from amg.models.pipeline import Pipeline
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    stable_diffusion_3().save_pretrained(path)
    return path


@pytest.mark.parametrize("s0", [1.0, 3.0])
def test_a_folder_without_t5_is_sampled_as_its_pipeline_and_guided_as_by_guard(folder, s0):
    model = Pipeline(folder, max_sequence_length=1)
    assert model.shape == (4, 8, 8) and model.side == 16 and model.pipeline.text_encoder_3 is None
    options = {"prompt": PROMPTS, "guidance_scale": s0, "max_sequence_length": 1}
    drawn = sample(model, SEEDS, prompts=PROMPTS, s0=s0, steps=4)
    assert torch.equal(drawn, call(model.pipeline, options))
    assert torch.equal(
        sample(model, SEEDS, None, amg(), prompts=PROMPTS, s0=s0, steps=4), call(guard(model.pipeline, amg()), options)
    )
    images = model.decode(drawn)
    assert images.shape == (3, 3, 16, 16)
    scaled = drawn / model.pipeline.vae.config.scaling_factor + 0.1
    torch.testing.assert_close(images, model.pipeline.vae.decode(scaled).sample)


def test_sampling_leaves_the_pipelines_scheduler_and_a_sample_alone_is_as_in_its_batch(folder):
    model = Pipeline(folder, dtype="float64")
    scheduler = model.pipeline.scheduler
    both = sample(model, [4, 5], prompts=PROMPTS[:2], s0=3.0, steps=3)
    alone = sample(model, [5], prompts=PROMPTS[1:2], s0=3.0, steps=3)
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-6)
    assert model.pipeline.scheduler is scheduler


def test_a_u_nets_pipeline_is_sampled_as_the_model_of_its_own_loop():
    """GNI edits embeddings, the other two predictions."""
    pipe = stable_diffusion(dtype=torch.float64)
    for guidance in (None, amg(), GaussianNoiseInput(0.3)):
        options = {"prompts": PROMPTS, "guidance": guidance, "s0": 4.0, "steps": 4}
        expected = sample(StableDiffusion(pipe, scheduler=None), SEEDS, **options)
        torch.testing.assert_close(sample(Pipeline(pipe), SEEDS, **options), expected, rtol=1e-5, atol=1e-5)


def test_mistakes_are_told(folder):
    model = Pipeline(folder)
    with pytest.raises(ValueError, match="prompt 0 is 3: this model takes text"):
        model.check([3])
    with pytest.raises(ValueError, match="s0 must be >= 1 for StableDiffusion3Pipeline, got 0.5"):
        sample(model, [0], prompts=["a"], s0=0.5)
    with pytest.raises(ValueError, match="model.size must be a multiple of 2, got 17"):
        Pipeline(folder, size=17)


def test_detectors_look_at_the_noise_that_the_trajectory_begins_with(folder):
    model = Pipeline(folder)
    with pytest.raises(ValueError, match="magnitude asks more of the network than the steps"):
        observe(model, {"magnitude": Magnitude()}, SEEDS, PROMPTS, steps=3)
    seen = observe(model, {"magnitude": Magnitude()}, SEEDS, PROMPTS, s0=3.0, steps=3)
    steps = []
    sample(model, SEEDS, prompts=PROMPTS, s0=3.0, steps=3, on_step=lambda step, state: steps.append(step))
    expected = (steps[0].eps_cond - steps[0].eps_uncond).flatten(1).norm(dim=1)
    torch.testing.assert_close(seen.seen["magnitude"].flatten().float(), expected)


@pytest.mark.parametrize("kind", [Pipeline, StableDiffusion])
def test_the_digest_names_the_weights(kind):
    pipe, again = stable_diffusion(), stable_diffusion()
    again.unet.load_state_dict(pipe.unet.state_dict())
    assert kind(pipe).digest == kind(again).digest
    with torch.no_grad():
        again.unet.conv_out.bias += 1
    assert kind(pipe).digest != kind(again).digest
