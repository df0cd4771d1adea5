"""What guard does with finished images that are copies."""

import numpy as np
import pytest
import torch
from guarded import PIPELINES, PROMPTS, SEEDS, amg
from PIL import Image
from tiny_pipelines import WIDTH, modular, stable_diffusion, stable_diffusion_3

from amg.bank import TrainingBank
from amg.guidance import AntiMemorizationGuidance, Chain, Guidance
from amg.sampling import guard
from amg.similarity import Match
from amg.similarity.copies import CopyChecker, as_tensor, derived_seed, find_copies
from amg.thresholds import Always, Constant


class Nearest:
    """1 at a training image, less by the mean difference."""

    copy = 0.999

    def __init__(self, images, captions=("the first", "the second")):
        captions = captions if len(captions) == len(images) else None
        self.bank = TrainingBank.from_tensors(images.float().clamp(-1, 1), captions)

    def __call__(self, images):
        value, index = (1 - (images[:, None].float() - self.bank.pictures[:]).abs().mean((2, 3, 4))).max(1)
        return Match(value, index)


def drawn(pipe, options, seeds=SEEDS, kind="pt", steps=4):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**options, generator=generators, num_inference_steps=steps, output_type=kind).images


def tensor(images):
    return images * 2 - 1 if isinstance(images, torch.Tensor) else as_tensor(images)


def planted(pipe, options, rows, kind="pt"):
    """The images of a bare pipeline, and a similarity that knows some of them as training images."""
    bare = drawn(pipe, options, kind=kind)
    return bare, Nearest(tensor(bare)[rows])


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_a_copy_is_flagged_or_painted_black_and_the_others_keep_their_bits(kind):
    pipe, options = stable_diffusion(), {"prompt": PROMPTS}
    bare, judge = planted(pipe, options, [0, 2], kind)
    flagged = guard(pipe, Guidance(), on_copy="flag", judge=judge)
    got = drawn(flagged, options, kind=kind)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(got, bare, strict=True))
    assert [one.copy for one in flagged.report] == [True, False, True]
    assert flagged.report[2].caption == "the second" and flagged.report[2].nearest == 1
    assert flagged.report[0].similarity == pytest.approx(1, abs=1e-5) and flagged.report[0].steps_guided == 0
    refused = guard(pipe, Guidance(), on_copy="refuse", judge=judge)
    got = drawn(refused, options, kind=kind)
    assert [one.refused for one in refused.report] == [True, False, True]
    assert not np.asarray(got[0]).any() and not np.asarray(got[2]).any()
    assert np.array_equal(np.asarray(got[1]), np.asarray(bare[1]))


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ("ddpm", "ddim")])
def test_a_copy_is_drawn_again_from_a_seed_of_its_own(name):
    """The new image is what the bare pipeline makes of that seed and prompt alone."""
    build, options = PIPELINES[name]
    pipe = build()
    bare, judge = planted(pipe, options, [1])
    guarded = guard(pipe, Guidance(), on_copy="resample", judge=judge)
    got = drawn(guarded, options)
    assert [one.tries for one in guarded.report] == [0, 1, 0] and not any(one.copy for one in guarded.report)
    assert torch.equal(got[[0, 2]], bare[[0, 2]])
    each = options.get("num_images_per_prompt", 1)
    alone = {
        name: [value[1 // each]] if isinstance(value, list) else value
        for name, value in options.items()
        if name != "num_images_per_prompt"
    }
    expected = drawn(pipe, alone, [derived_seed(5, 1)])
    torch.testing.assert_close(got[1:2], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(drawn(guarded, options), got)  # the same seeds, the same images


def test_embeddings_latents_and_unconditional_rows_are_drawn_again_too():
    pipe = stable_diffusion_3()
    embeddings = {
        "prompt_embeds": torch.randn(3, 8, 2 * WIDTH),
        "pooled_prompt_embeds": torch.randn(3, 2 * WIDTH),
        "guidance_scale": 1.0,
    }
    for options in (embeddings, embeddings | {"latents": torch.randn(3, 4, 8, 8)}):
        bare, judge = planted(pipe, options, [2])
        guarded = guard(pipe, Guidance(), on_copy="resample", judge=judge)
        got = drawn(guarded, options)
        assert [one.tries for one in guarded.report] == [0, 0, 1] and torch.equal(got[:2], bare[:2])
        alone = {name: value[2:] if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        expected = drawn(pipe, {k: v for k, v in alone.items() if k != "latents"}, [derived_seed(6, 1)])
        torch.testing.assert_close(got[2:], expected, rtol=1e-3, atol=1e-3)
    build, options = PIPELINES["ddim"]
    pipe = build()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    bare = pipe(**options, generator=generators, num_inference_steps=4, output_type="np").images
    guarded = guard(pipe, Guidance(), on_copy="resample", judge=Nearest(as_tensor(bare)[1:2]))
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    got = guarded(**options, generator=generators, num_inference_steps=4, output_type="np").images
    assert [one.tries for one in guarded.report] == [0, 1, 0] and np.array_equal(got[::2], bare[::2])


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_copies_of_a_modular_pipeline_are_drawn_again_and_refused(kind):
    pipe = modular()

    def images(pipe, seeds=SEEDS, prompts=PROMPTS):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": 2, "height": 16, "width": 16, "output": "images", "output_type": kind}
        return pipe(prompt=list(prompts), generator=generators, **options)

    bare = images(pipe)
    judge = Nearest(tensor(bare)[[1]])
    guarded = guard(pipe, Guidance(), on_copy="resample", judge=judge)
    got = images(guarded)
    assert [(one.tries, one.copy) for one in guarded.report] == [(0, False), (1, False), (0, False)]
    assert all(np.array_equal(np.asarray(got[i]), np.asarray(bare[i])) for i in (0, 2))
    alone = images(pipe, [derived_seed(SEEDS[1], 1)], PROMPTS[1:2])
    torch.testing.assert_close(tensor(got)[1:2], tensor(alone), rtol=0.01, atol=0.01)
    refused = guard(pipe, Guidance(), on_copy="refuse", judge=judge)
    got = images(refused)
    assert [one.refused for one in refused.report] == [False, True, False] and not np.asarray(got[1]).any()


def test_what_stays_a_copy_is_refused_after_the_last_try_and_the_strong_constants_come_second():
    used = []

    class Named(Guidance):
        def __init__(self, name):
            self.name = name

        def stronger(self):
            return Named("strong")

        def __call__(self, step, state):
            used.append(self.name)
            return step.eps, state

    class All(Nearest):
        copy = -1e9

    pipe, options = stable_diffusion(), {"prompt": PROMPTS[:2]}
    guarded = guard(pipe, Chain([Named("main")]), on_copy="resample", judge=All(torch.zeros(1, 3, 16, 16)), tries=2)
    got = drawn(guarded, options, SEEDS[:2], steps=2)
    assert used == ["main"] * 4 + ["strong"] * 2 and not got.any()
    assert [(one.tries, one.refused, one.copy) for one in guarded.report] == [(2, True, True)] * 2


def test_a_guidance_compares_by_its_own_similarity_and_says_how_often_it_acted():
    pipe, options = stable_diffusion(), {"prompt": PROMPTS}
    bare, similarity = planted(pipe, options, [0])
    never = AntiMemorizationGuidance(similarity, Constant(2.0), c3=1.0)
    guarded = guard(pipe, never, on_copy="flag")
    drawn(guarded, options)
    assert [one.copy for one in guarded.report] == [True, False, False]
    assert [one.steps_guided for one in guarded.report] == [0, 0, 0]
    guarded = guard(pipe, AntiMemorizationGuidance(similarity, Always(), c3=1.0), on_copy="flag")
    drawn(guarded, options)
    assert [one.steps_guided for one in guarded.report] == [4, 4, 4]
    strong = AntiMemorizationGuidance(similarity, Always(), c3=9.0)
    assert AntiMemorizationGuidance(similarity, Always(), c3=1.0, strong=strong).stronger() is strong
    latents = guard(pipe, never, on_copy="flag")
    drawn(latents, options, kind="latent")
    assert [one.copy for one in latents.report] == [True, False, False]


def test_mistakes_are_told_before_the_first_step():
    pipe, judge = stable_diffusion(), Nearest(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="on_copy compares finished images with a bank, and Guidance has none"):
        guard(pipe, Guidance(), on_copy="flag")
    with pytest.raises(ValueError, match="on_copy: unknown 'drop'; choose flag, resample, refuse"):
        guard(pipe, Guidance(), on_copy="drop", judge=judge)
    with pytest.raises(ValueError, match="tries must be an integer >= 1, got 0"):
        guard(pipe, Guidance(), on_copy="resample", judge=judge, tries=0)
    with pytest.raises(ValueError, match="has no copy threshold"):
        guard(pipe, amg(), on_copy="flag")
    with pytest.raises(ValueError, match="without on_copy nothing is judged"):
        guard(pipe, Guidance(), judge=judge)
    with pytest.raises(ValueError, match="on_copy=refuse changes images: leave out output_type='latent'"):
        guard(pipe, Guidance(), on_copy="refuse", judge=judge)("a", output_type="latent")
    with pytest.raises(AttributeError, match="on_copy of a guarded pipeline cannot be replaced"):
        guard(pipe, Guidance()).on_copy = "flag"


def test_copies_among_images_from_anywhere(tmp_path):
    generator = torch.Generator().manual_seed(0)
    training = torch.rand(2, 3, 16, 16, generator=generator).mul(255).round().div(127.5).sub(1)
    similarity = Nearest(training)
    pixels = training.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    first = Image.fromarray(pixels[0])
    first.save(tmp_path / "first.png")
    large = first.resize((64, 64), Image.Resampling.NEAREST)
    novel = Image.new("RGB", (16, 16), "red")
    found = find_copies([first, str(tmp_path / "first.png"), large, novel], similarity.bank, similarity)
    assert [one.copy for one in found] == [True, True, True, False]
    assert [one.caption for one in found[:3]] == ["the first"] * 3
    mirror = training.flip(3)
    assert not any(one.copy for one in find_copies(mirror, similarity.bank, similarity))
    assert all(one.copy for one in find_copies(mirror, similarity.bank, similarity, mirrored=True))
    assert all(one.copy for one in find_copies(mirror, None, similarity, threshold=-1.0))
    (judged,) = find_copies(mirror[:1], similarity.bank, similarity, judge=similarity, judge_threshold=-1.0)
    assert judged.copy and judged.judge == judged.similarity
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png: no image that can be read"):
        find_copies([tmp_path / "broken.png"], similarity.bank, similarity)


def test_copies_are_black_where_diffusers_asks_its_safety_checker():
    pipe, options = stable_diffusion(), {"prompt": PROMPTS}
    bare, similarity = planted(pipe, options, [1])
    pipe.safety_checker = CopyChecker(similarity.bank, similarity)
    pipe.feature_extractor = pipe.safety_checker.feature_extractor
    output = pipe(
        **options,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=4,
        output_type="pt",
    )
    assert output.nsfw_content_detected == [False, True, False]
    assert not output.images[1].any() and torch.equal(output.images[::2], bare[::2])
    assert pipe.safety_checker.report[1].caption == ""
