"""A guarded call: seeds and prompts that a guidance is given, and a pipeline that is as before afterwards."""

import pytest
import torch
from diffusers import DDIMScheduler
from guarded import PIPELINES, PROMPTS, SEEDS, amg, call, denoiser_of, remains, size_of
from tiny_pipelines import sdxl, stable_diffusion

from amg.guidance import Guidance
from amg.guidance.rivals.somepalli import RandomNumbers
from amg.sampling import guard


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["guidance", "callback"])
def test_the_pipe_is_as_before_after_an_error(error, place):
    pipe = stable_diffusion()
    options = {"prompt": PROMPTS}
    expected, before = call(pipe, options), remains(pipe)

    def stop(*args):
        raise error("stop")

    guidance = Guidance() if place == "callback" else stop
    extra = {"callback_on_step_end": stop} if place == "callback" else {}
    with pytest.raises(error, match="stop"):
        call(guard(pipe, guidance), options | extra)
    assert remains(pipe) == before
    assert torch.equal(call(pipe, options), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipe_is_as_before_after_an_error_in_the_midst(name, error):
    build, options = PIPELINES[name]
    pipe, steps = build(), []
    next(denoiser_of(pipe).parameters()).requires_grad_(False)  # what did not learn before does not afterwards
    expected, before = call(pipe, options), remains(pipe)

    def stop(step, state):
        steps.append(step)
        if len(steps) == 2:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        call(guard(pipe, amg(None, size_of(name)), on_step=stop), options)
    assert len(steps) == 2 and remains(pipe) == before
    assert torch.equal(call(pipe, options), expected)


def test_seeds_come_from_the_generators_and_else_differ_by_row():
    pipe, seen = stable_diffusion(), []
    guarded = guard(pipe, Guidance(), on_step=lambda step, state: seen.append(step.seeds))
    options = {"num_inference_steps": 1, "output_type": "latent"}
    guarded(PROMPTS, generator=[torch.Generator().manual_seed(s) for s in (9, 3, 7)], **options)
    guarded(PROMPTS, generator=torch.Generator().manual_seed(20), **options)
    torch.manual_seed(100)
    guarded(PROMPTS, **options)
    assert seen == [(9, 3, 7), (20, 21, 22), (100, 101, 102)]


def test_a_guidance_may_rewrite_the_prompts():
    class Shout(Guidance):
        def prompts(self, prompts, seeds):
            return [f"{prompt} s{'x' * (seed - 3)}" for prompt, seed in zip(prompts, seeds, strict=True)]

    pipe = stable_diffusion()
    expected = call(pipe, {"prompt": ["a cat sx", "two dogs sxx", "sea sxxx"]})
    assert torch.equal(call(guard(pipe, Shout()), {"prompt": PROMPTS}), expected)


@pytest.mark.parametrize("negative", [{}, {"negative_prompt": ["ugly"] * 3}])
def test_both_prompts_of_sdxl_are_rewritten_by_the_same_seeds(negative):
    pipe, rna = sdxl(), RandomNumbers()
    second = ["red", "blue", "green"]
    rewritten = {"prompt": rna.prompts(PROMPTS, SEEDS), "prompt_2": rna.prompts(second, SEEDS)}
    expected = call(pipe, rewritten | negative)
    assert torch.equal(call(guard(pipe, rna), {"prompt": PROMPTS, "prompt_2": second} | negative), expected)
    assert not torch.equal(call(pipe, rewritten | {"prompt_2": second} | negative), expected)


def test_attributes_pass_through_and_moving_keeps_the_guard():
    pipe = stable_diffusion()
    guarded = guard(pipe, Guidance())
    assert guarded.unet is pipe.unet
    guarded.scheduler = scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler is scheduler
    assert guarded.to("cpu") is guarded
