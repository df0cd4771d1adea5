"""Cross-attention re-scaling against attention written out, in both samplers, and undone whatever happens."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from guarded import PIPELINES, call
from tiny_pipelines import LENGTH, sdxl, stable_diffusion, unconditional

from amg.guidance import AntiMemorizationGuidance, Chain, Guidance
from amg.guidance.rivals.ren import CrossAttentionRescaling
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.similarity import Match
from amg.thresholds import Always
from experiments.cli.main import main
from experiments.run import records

PROMPTS = ["a cat", "two dogs", "sea"]
LENGTHS = [6, 9, 5]  # letters are tokens here; with BOS and EOS
SEEDS = [4, 5, 6]
BUILDS = {"sd": lambda: stable_diffusion(dtype=torch.float64), "sdxl": lambda: sdxl(torch.float64)}


class Written:
    """Attention as Ren et al. change it, from the logits; rows are [uncond | cond] of PROMPTS."""

    def __init__(self, strength: float, mask: bool):
        self.strength, self.mask = strength, mask

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, temb=None):
        query, key, value = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # (2B, heads, pixels, tokens)
        logits[len(PROMPTS) :, :, :, 0] *= self.strength
        if self.mask:
            for row, length in enumerate([*LENGTHS, *LENGTHS]):
                logits[row, :, :, length:] = -torch.inf
        return attn.to_out[0]((logits.softmax(3) @ value).transpose(1, 2).flatten(2))


def draw(model, guidance, prompts=PROMPTS, seeds=SEEDS, s0=3.0, steps=3, **options):
    return sample(model, seeds, guidance=guidance, prompts=prompts, s0=s0, steps=steps, **options)


def steps_of(model, guidance, **options):
    seen = []
    draw(model, guidance, on_step=lambda step, _: seen.append(step), **options)
    return seen


def hooks(unet) -> list:
    return [
        (name, len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in unet.named_modules()
        if part._forward_hooks or part._forward_pre_hooks
    ]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("strength", "mask"), [(1.25, False), (1.0, True), (3.0, True)])
def test_it_is_attention_with_the_first_logit_scaled_and_the_padding_hidden(build, strength, mask):
    model = StableDiffusion(BUILDS[build]())
    got = draw(model, CrossAttentionRescaling(strength, mask))
    plain = draw(model, None)
    processors = {
        name: Written(strength, mask) if "attn2" in name else old for name, old in model.unet.attn_processors.items()
    }
    model.unet.set_attn_processor(processors)
    expected = draw(model, None)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert (expected - plain).flatten(1).abs().amax(1).min() > 1e-6  # and there was something to change


@pytest.mark.parametrize("build", BUILDS)
def test_strength_1_without_mask_is_plain_guidance_bit_by_bit(build):
    pipe, off = BUILDS[build](), CrossAttentionRescaling(1.0, mask=False)
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 3.0}

    def latents(pipe):
        return pipe(PROMPTS, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], **options).images

    expected = latents(pipe)
    assert torch.equal(latents(guard(pipe, off)), expected)
    model = StableDiffusion(pipe)
    assert torch.equal(draw(model, off), draw(model, None))


def test_the_first_logit_is_scaled_in_conditional_rows_alone_with_and_without_cfg():
    model, method = StableDiffusion(BUILDS["sd"]()), CrossAttentionRescaling(2.0, mask=False)
    (plain,), (scaled,) = steps_of(model, None, steps=1), steps_of(model, method, steps=1)
    assert torch.equal(scaled.eps_uncond, plain.eps_uncond)
    assert (scaled.eps_cond - plain.eps_cond).flatten(1).abs().amax(1).min() > 1e-6
    (alone,) = steps_of(model, method, steps=1, s0=1.0)
    torch.testing.assert_close(alone.eps, scaled.eps_cond, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("build", BUILDS)
def test_predictions_that_a_guidance_asks_for_are_changed_alike(build):
    """Another caption's rows are conditional rows, and their padding begins where that caption ends."""
    compared = []

    class Asks(Guidance):
        def __call__(self, step, state):
            rows = torch.tensor([2, 0])
            own = step.denoise(rows, ["sea", "a cat"])
            torch.testing.assert_close(own, step.eps_cond[rows], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(step.predict(step.x_t[rows], rows), step.eps[rows], rtol=1e-9, atol=1e-9)
            compared.append(step.timestep)
            return step.eps, state

    method, pipe = Chain([CrossAttentionRescaling(2.0), Asks()]), BUILDS[build]()
    guard(pipe, method)(PROMPTS, num_inference_steps=2, output_type="latent", guidance_scale=3.0)
    draw(StableDiffusion(pipe), method, steps=2)
    assert len(compared) == 4


@pytest.mark.parametrize("build", BUILDS)
def test_a_guarded_pipeline_equals_sample_with_amg_behind_it(build):
    def method():
        amg = AntiMemorizationGuidance(
            lambda x: Match(3 + x.flatten(1).mean(1), torch.arange(len(x)) % 2), Always(), c1=1.0, c2=1.0, c3=0.5,
            captions=["one bee", "axe"],
        )  # fmt: skip
        return Chain([CrossAttentionRescaling(2.0), amg])

    pipe = BUILDS[build]()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 5.0}
    got = guard(pipe, method())(PROMPTS, generator=generators, **options).images
    expected = draw(StableDiffusion(pipe, scheduler=None), method(), s0=5.0)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, options) in PIPELINES.items() if "prompt" in options])
def test_every_tested_pipeline_of_text_takes_it_or_is_refused_by_name(name):
    build, options = PIPELINES[name]
    pipe = build()
    if "unet" not in pipe.components:
        with pytest.raises(ValueError, match=f"cross-attention of a U-Net, and {type(pipe).__name__} has none"):
            call(guard(pipe, CrossAttentionRescaling(3.0)), options)
        return
    expected = call(pipe, options)
    assert torch.equal(call(guard(pipe, CrossAttentionRescaling(1.0, mask=False)), options), expected)
    changed = call(guard(pipe, CrossAttentionRescaling(3.0)), options)
    assert (changed - expected).flatten(1).abs().amax(1).min() > 1e-6 and hooks(pipe.unet) == []


def test_several_pictures_of_a_prompt_and_calls_without_cfg_in_a_pipeline():
    pipe, method = BUILDS["sd"](), CrossAttentionRescaling(2.0)
    for scale in (1.0, 3.0):
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        got = guard(pipe, method)(
            ["a cat", "sea"], num_images_per_prompt=2, generator=generators, num_inference_steps=2,
            output_type="latent", guidance_scale=scale,
        ).images  # fmt: skip
        prompts = ["a cat", "a cat", "sea", "sea"]
        expected = draw(StableDiffusion(pipe, scheduler=None), method, prompts, range(4), s0=scale, steps=2)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_a_sample_depends_on_its_own_prompt_alone():
    model, method = StableDiffusion(BUILDS["sd"]()), CrossAttentionRescaling()
    together = draw(model, method)
    alone = torch.cat([draw(model, method, [p], [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_network_is_as_before_after_an_error(error):
    def stop(step, state):
        assert len(hooks(pipe.unet)) > 3
        raise error("stop")

    pipe = BUILDS["sd"]()
    model, before = StableDiffusion(pipe), hooks(pipe.unet)
    expected = draw(model, None)
    with pytest.raises(error, match="stop"):
        draw(model, CrossAttentionRescaling(), on_step=stop)
    with pytest.raises(error, match="stop"):
        guard(pipe, CrossAttentionRescaling(), on_step=stop)(PROMPTS, num_inference_steps=2, output_type="latent")
    assert hooks(pipe.unet) == before and torch.equal(draw(model, None), expected)


def test_a_prompt_that_is_cut_off_has_no_padding_to_hide():
    model = StableDiffusion(BUILDS["sd"]())
    long = ["abcdefgh ijklmnop"]
    with pytest.warns(UserWarning, match="cut off"):
        plain = draw(model, None, long, [1])
    assert len(model.tokenizer(long[0]).input_ids) > LENGTH
    torch.testing.assert_close(draw(model, CrossAttentionRescaling(1.0), long, [1]), plain, rtol=1e-9, atol=1e-9)


def test_what_it_cannot_serve_is_told():
    pipe = BUILDS["sd"]()
    model = StableDiffusion(pipe)
    condition = model.encode(PROMPTS)
    with pytest.raises(ValueError, match=r"guidance.mask: .* give prompts, or mask=false"):
        sample(model, SEEDS, condition, CrossAttentionRescaling(), s0=3.0, steps=2)
    got = sample(model, SEEDS, condition, CrossAttentionRescaling(2.0, mask=False), s0=3.0, steps=2)
    assert torch.equal(got, draw(model, CrossAttentionRescaling(2.0, mask=False), steps=2))
    with pytest.raises(ValueError, match="works on prompts, and DDPMPipeline has none"):
        guard(unconditional(DDPMPipeline, DDPMScheduler()), CrossAttentionRescaling())(num_inference_steps=2)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        draw(model, CrossAttentionRescaling())
    with pytest.raises(ValueError, match="guidance.strength must be > 0, got -1"):
        CrossAttentionRescaling(-1)


@pytest.mark.slow
def test_a_run_of_the_lab_draws_other_pictures_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [
        "model=lab_sd",
        "trainer=cpu",
        "metrics.extractor=none",
        "sampler.steps=4",
        "n_samples=2",
        "prompts=planted",
    ]
    assert main([*common, "guidance=ren", "output_dir=ren"]) == 0
    assert main([*common, "guidance=none", "output_dir=none"]) == 0
    ren, none = (records.read(folder) for folder in ("ren", "none"))
    assert list(ren.prompt) == list(none.prompt) and (ren.similarity != none.similarity).all()
    assert Path("ren/pictures/0.png").read_bytes() != Path("none/pictures/0.png").read_bytes()
