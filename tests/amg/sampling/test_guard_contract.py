"""What guard refuses by name, and what it notices at run time."""

import copy
import threading

import diffusers
import pytest
import torch
from guarded import PIPELINES, PROMPTS, TRANSFORMERS, amg, bank, call, denoiser_of, has_cfg, remains, size_of
from tiny_pipelines import sdxl, stable_diffusion
from toy import Toy

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.base import Chain
from amg.guidance.rivals.jain import StaticTransitionPoint
from amg.guidance.rivals.ren import CrossAttentionRescaling
from amg.guidance.rivals.somepalli import RandomNumbers
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.sampling.recorded_call import cfg_scale
from amg.similarity import NormalizedL2
from amg.thresholds import Always, Constant


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


def test_cfg_scale_is_recovered_and_another_formula_is_noticed():
    uncond, cond = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)
    plain = uncond + 4.2 * (cond - uncond)
    assert cfg_scale(plain, 4.2, uncond, cond) == 4.2
    assert cfg_scale(plain, 3.0, uncond, cond) == pytest.approx(4.2)
    half = plain * 0.5
    assert cfg_scale(half, 4.2, uncond, cond, half) == 4.2
    with pytest.raises(RuntimeError, match="is not uncond"):
        cfg_scale(half, 4.2, uncond, cond)
    assert cfg_scale(uncond, 7.5, uncond, uncond) == 7.5  # equal predictions say nothing


def test_a_pipeline_that_breaks_its_contract_is_stopped():
    pipe = stable_diffusion()
    pipe.scheduler.scale_model_input = lambda sample, t: sample * 2
    with pytest.raises(RuntimeError, match="fed its denoiser something else"):
        guard(pipe, Guidance())("a", num_inference_steps=2)


TEXT = [name for name in PIPELINES if name not in ("ddpm", "ddim", *TRANSFORMERS)]
NO_WORDS = "RandomNumbers rewrites prompts in words: give prompt"


def embedded(pipe, options):
    """The options of a call with embeddings in place of its prompts."""
    others = {name: None for name in ("prompt_2", "prompt_3") if "3" in type(pipe).__name__}
    values = pipe.encode_prompt(
        options["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **others
    )
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    rest = {name: value for name, value in options.items() if name != "prompt"}
    return rest | dict(zip(names, values, strict=False))


@pytest.mark.parametrize("method", [RandomNumbers(), Chain([Guidance(), RandomNumbers()])], ids=["rna", "chain"])
@pytest.mark.parametrize("name", TEXT)
def test_rewriting_prompts_is_refused_where_embeddings_are_given(name, method):
    build, options = PIPELINES[name]
    pipe, steps = build(), []
    with pytest.raises(ValueError, match=NO_WORDS):
        call(guard(pipe, method, lambda *seen: steps.append(seen)), embedded(pipe, options))
    assert not steps
    plain = embedded(pipe, options)
    assert torch.equal(call(guard(pipe, Guidance()), plain), call(pipe, plain))  # what rewrites nothing is welcome


@pytest.mark.parametrize("given", [{"prompts": [0, 1]}, {"condition": torch.tensor([0, 1])}, {}])
def test_rewriting_prompts_is_refused_by_sample_without_words(given):
    model = Toy(diffusers.DDIMScheduler(), conditional=bool(given))
    with pytest.raises(ValueError, match=NO_WORDS + "s="):
        sample(model, [0, 1], guidance=RandomNumbers(), steps=2, **given)
    assert model.rows == 0


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("method", [RandomNumbers(), CrossAttentionRescaling()])
def test_methods_on_prompts_are_refused_for_pipelines_without(name, method):
    with pytest.raises(
        ValueError, match=f"{type(method).__name__} works on prompts, and {name.upper()}Pipeline has none"
    ):
        guard(PIPELINES[name][0](), method)


def test_methods_on_cfg_are_refused_before_the_first_step_without_it():
    for name, scale in [("ddpm", {}), ("sd", {"guidance_scale": 1.0})]:
        build, options = PIPELINES[name]
        pipe, seen = build(), []
        before = remains(pipe)
        method = Chain([amg(size=size_of(name)), StaticTransitionPoint()])
        with pytest.raises(
            ValueError, match="StaticTransitionPoint works on classifier-free guidance: set guidance_scale"
        ):
            call(guard(pipe, method, lambda *step: seen.append(step)), options | scale)  # noqa: B023
        assert not seen and remains(pipe) == before


@pytest.mark.filterwarnings("ignore:no training image has a caption")
@pytest.mark.parametrize("name", [name for name in TEXT if has_cfg(name)])
def test_a_freed_text_encoder_is_noticed_before_the_first_step_and_only_where_g_dup_needs_it(name):
    build, options = PIPELINES[name]
    pipe, steps = build(), []
    options = embedded(pipe, options)
    expected = call(pipe, options)
    for part in [part for part in pipe.components if part.startswith(("text_encoder", "tokenizer"))]:
        setattr(pipe, part, None)
    before = remains(pipe)
    with pytest.raises(
        ValueError, match=r'no tokenizer and no text_encoder.*keep the text encoder, or use terms=\["spe"'
    ):
        call(guard(pipe, amg(), lambda *seen: steps.append(seen)), options)
    assert not steps and remains(pipe) == before
    similarity = amg().similarity
    for guidance in (
        AntiMemorizationGuidance(similarity, Always(), c1=2.0, c3=5.0, terms=["spe", "sim"]),
        AntiMemorizationGuidance(
            NormalizedL2(TrainingBank.from_tensors(bank().pictures[:]), k=3), Always(), c1=2.0, c2=9.0, c3=5.0
        ),
    ):
        assert not torch.equal(call(guard(pipe, guidance), options), expected)


def test_one_of_two_text_encoders_freed_is_noticed_too_and_without_cfg_none_is_needed():
    pipe = sdxl()
    options = embedded(pipe, PIPELINES["sdxl"][1])
    pipe.text_encoder_2 = None
    with pytest.raises(ValueError, match="this pipeline has no text_encoder_2: keep the text encoder"):
        call(guard(pipe, Chain([Guidance(), amg(Constant(1e9))])), options)
    call(guard(pipe, amg()), options | {"guidance_scale": 1.0})


class TestReplacing:
    @pytest.mark.parametrize("name", ["guidance", "on_step", "pipe"])
    def test_what_a_guard_is_made_of_cannot_be_replaced(self, name):
        pipe, first = stable_diffusion(), amg()
        guarded = guard(pipe, first)
        with pytest.raises(AttributeError, match=f"{name} of a guarded pipeline cannot be replaced: make a new guard"):
            setattr(guarded, name, amg(Constant(1e9)))
        assert guarded.guidance is first and guarded.pipe is pipe and not hasattr(pipe, "guidance")

    def test_copies_stay_guarded(self):
        pipe = stable_diffusion(dtype=torch.float64)
        expected = call(guard(pipe, amg()), {"prompt": PROMPTS})
        for copied in (copy.copy(guard(pipe, amg())), copy.deepcopy(guard(pipe, amg()))):
            assert not torch.equal(call(copied, {"prompt": PROMPTS}), call(pipe, {"prompt": PROMPTS}))
            torch.testing.assert_close(call(copied, {"prompt": PROMPTS}), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        "make",
        [
            diffusers.StableDiffusionImg2ImgPipeline.from_pipe,
            diffusers.StableDiffusionPipeline.from_pipe,
            diffusers.StableDiffusionInpaintPipeline.from_pipe,
            lambda pipe: diffusers.StableDiffusionPipeline(**pipe.components),
        ],
    )
    def test_a_pipeline_made_of_a_guarded_one_is_refused(self, make):
        guarded = guard(stable_diffusion(), amg())
        with pytest.raises(ValueError, match="a pipeline made of a guarded one is unguarded: make it of `.pipe`"):
            make(guarded)
        for other in (diffusers.AutoPipelineForImage2Image.from_pipe, StableDiffusion):
            with pytest.raises(ValueError, match="GuardedPipeline"):
                other(guarded)
        made = guard(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(guarded.pipe), guarded.guidance)
        assert made.unet is guarded.unet


class TestSharedNetwork:
    """Two calls on one U-Net at a time."""

    ERROR = "another call uses this denoiser: one at a time"

    @pytest.mark.parametrize("name", PIPELINES)
    @pytest.mark.parametrize("second_is_guarded", [True, False])
    def test_the_second_is_refused_by_name_and_the_pipe_is_as_before(self, name, second_is_guarded):
        build, options = PIPELINES[name]
        pipe = build()
        parts = {key: part for key, part in pipe.components.items() if key != "scheduler"}
        extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        twin = type(pipe)(**parts, scheduler=copy.deepcopy(pipe.scheduler), **extra)
        twin.set_progress_bar_config(disable=True)
        second = guard(twin, amg(size=size_of(name))) if second_is_guarded else twin
        expected, before, errors = call(pipe, options), remains(pipe), []

        def other():
            try:
                call(second, options)
            except RuntimeError as error:
                errors.append(str(error))

        def meanwhile(step, state):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

        first = guard(pipe, amg(Constant(1e9), size_of(name)), meanwhile)
        if second_is_guarded:
            assert torch.equal(call(first, options), expected)
            assert set(errors) == {self.ERROR}
        else:
            with pytest.raises(RuntimeError, match=self.ERROR):
                call(first, options)
            assert not errors
        assert remains(pipe) == before and "_guarded_by" not in vars(denoiser_of(pipe))
        assert torch.equal(call(pipe, options), expected)
        if second_is_guarded:
            call(second, options)  # one after the other

    def test_so_is_a_call_within_a_call_and_a_shared_scheduler(self):
        pipe, other = stable_diffusion(), stable_diffusion()
        options = {"prompt": PROMPTS}
        with pytest.raises(RuntimeError, match=self.ERROR):
            call(guard(pipe, amg(), lambda *seen: call(guard(pipe, amg()), options)), options)
        other.scheduler = pipe.scheduler
        with pytest.raises(RuntimeError, match="another call uses this scheduler: one at a time"):
            call(guard(pipe, amg(), lambda *seen: call(guard(other, amg()), options)), options)
        assert "_guarded_by" not in vars(pipe.unet) and "_guarded_by" not in vars(other.unet)


@pytest.mark.parametrize("name", ["sd", "sdxl", "ddpm"])
def test_images_that_are_not_square_name_the_banks_size(name):
    build, options = PIPELINES[name]
    pipe = build()
    size = {"height": 24, "width": 16} if name != "ddpm" else {}
    with pytest.raises(ValueError, match=r"load the bank with size=\(\d+, \d+\)"):
        call(guard(pipe, amg()), options | size)  # the bank is 16 × 16, DDPM's images 8 × 8
