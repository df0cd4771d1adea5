"""What guard refuses by name, and what it notices at run time."""

import diffusers
import pytest
import torch
from tiny_pipelines import stable_diffusion

from amg.guidance import Guidance
from amg.sampling import guard
from amg.sampling.recorded_call import cfg_scale


@pytest.mark.parametrize(
    "kind",
    ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"],
)
def test_schedulers_of_two_calls_are_refused_by_name_even_when_swapped_in_later(kind):
    pipe = stable_diffusion()
    guarded = guard(pipe, Guidance())
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=f"{kind} calls the network more than once a step: use DDIM"):
        guard(pipe, Guidance())
    with pytest.raises(ValueError, match=kind):
        guarded("a")


def test_runge_kutta_pndm_and_untested_schedulers_and_pipelines_are_refused_by_name():
    pipe = stable_diffusion()
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=False)
    with pytest.raises(ValueError, match="PNDMScheduler calls the network more than once"):
        guard(pipe, Guidance())
    pipe.scheduler = diffusers.TCDScheduler()
    with pytest.raises(ValueError, match="TCDScheduler is untested"):
        guard(pipe, Guidance())
    with pytest.raises(ValueError, match="guard does not know GuardedPipeline; it is tested with DDIMPipeline"):
        guard(guard(stable_diffusion(), Guidance()), Guidance())


def test_a_guidance_that_edits_embeddings_is_refused():
    class Edits(Guidance):
        def prepare(self, model, prompts, condition, x_T, seeds, start):
            return condition, x_T

    with pytest.raises(ValueError, match="Edits edits embeddings"):
        guard(stable_diffusion(), Edits())


def test_cfg_scale_is_recovered_and_another_formula_is_noticed():
    uncond, cond = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)
    plain = uncond + 4.2 * (cond - uncond)
    assert cfg_scale(plain, uncond, cond, asked=4.2) == 4.2
    assert cfg_scale(plain, uncond, cond, asked=3.0) == pytest.approx(4.2)
    assert cfg_scale(plain * torch.tensor([0.5, 1, 2]).view(3, 1, 1, 1), uncond, cond, asked=4.2, rescale=0.7) == 4.2
    with pytest.raises(RuntimeError, match="is not uncond"):
        cfg_scale(plain + uncond.roll(1, 0), uncond, cond, asked=4.2)
    assert cfg_scale(uncond, uncond, uncond, asked=7.5) == 7.5  # equal predictions say nothing


def test_a_pipeline_that_breaks_its_contract_is_stopped():
    pipe = stable_diffusion()
    pipe.scheduler.scale_model_input = lambda sample, t: sample * 2
    with pytest.raises(RuntimeError, match="fed its denoiser something else"):
        guard(pipe, Guidance())("a", num_inference_steps=2)
