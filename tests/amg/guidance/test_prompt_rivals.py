"""GNI, RT, RNA and CWR against hand-worked cases."""

import pytest
import torch
from tiny_pipelines import sdxl, stable_diffusion, tokenizer

from amg.guidance.rivals.somepalli import (
    CaptionWordRepetition,
    GaussianNoiseInput,
    RandomNumbers,
    RandomTokens,
)
from amg.guidance.streams import noise_of, words_of
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample


class Script:
    """Answers as written: the places and choices of a hand-worked case."""

    def __init__(self, places, choices):
        self.places, self.choices = iter(places), iter(choices)
        self.asked = []

    def randint(self, low, high):
        assert low == 0
        self.asked.append(high)
        return next(self.places)

    def choice(self, values):
        return values[next(self.choices)]

    def randrange(self, stop):
        assert stop == 100_000
        return next(self.choices)


def test_words_of_the_original_prompt_are_repeated_at_places_of_the_growing_one():
    rng = Script(places=[0, 4, 2], choices=[2, 0, 1])
    # a b c → c a b c → c a b c a → c a b b c a
    assert CaptionWordRepetition(3)._insert("a b c", rng) == "c a b b c a"
    assert rng.asked == [3, 4, 5]


def test_numbers_are_inserted_between_words():
    rng = Script(places=[1, 0], choices=[17, 99999])
    assert RandomNumbers(2)._insert("a b", rng) == "99999 a 17 b"


def test_tokens_are_decoded_and_inserted_between_words():
    tokens = tokenizer()  # ids 0 … 25 letters, 26 … 51 letters that end a word, then two special ones
    rng = Script(places=[2, 1], choices=[26 + 23, 2])
    assert RandomTokens(2, tokens)._insert("hi you", rng) == "hi c you x"


@pytest.mark.parametrize(
    "method", [CaptionWordRepetition(), RandomNumbers(), RandomTokens(4, tokenizer())], ids=["cwr", "rna", "rt"]
)
def test_a_prompt_depends_on_its_seed_alone_and_keeps_its_words(method):
    prompts = ["the sea at night", "a red fox", "the sea at night"]
    both = method.prompts(prompts, [7, 8, 9])
    assert both[1:] == method.prompts(prompts[1:], [8, 9])
    assert both[0] != both[2]
    for prompt, written in zip(prompts, both, strict=True):
        words, rest = iter(written.split(" ")), prompt.split(" ")
        assert all(word in words for word in rest)  # in order
        assert len(written.split(" ")) == len(rest) + 4


def test_none_inserted_is_the_prompt():
    for method in (CaptionWordRepetition(0), RandomNumbers(0), RandomTokens(0, tokenizer())):
        assert method.prompts(["a b"], [0]) == ["a b"]


@pytest.mark.parametrize("build", [stable_diffusion, sdxl])
def test_embeddings_of_prompt_and_null_are_noised_by_seed(build):
    model, method = StableDiffusion(build(torch.float64) if build is sdxl else build(dtype=torch.float64)), None
    method = GaussianNoiseInput(0.1)
    condition, null = model.encode(["a", "b"]), model.encode([None, None])
    noised, _ = method.prepare(model, None, condition, None, [3, 4], None)
    noised_null = method.prepare_null(model, null, [3, 4])
    pick = (lambda c: c["encoder_hidden_states"]) if isinstance(condition, dict) else (lambda c: c)
    change, change_null = pick(noised) - pick(condition), pick(noised_null) - pick(null)
    assert change.std().item() == pytest.approx(0.1, rel=0.1) and change_null.std().item() == pytest.approx(
        0.1, rel=0.1
    )
    alone, _ = method.prepare(model, None, model.encode(["b"]), None, [4], None)
    torch.testing.assert_close(pick(alone)[0], pick(noised)[1])
    assert not torch.allclose(change, change_null)
    if isinstance(condition, dict):
        assert torch.equal(noised["text_embeds"], condition["text_embeds"])


def test_gni_reaches_both_branches_of_a_chain():
    model = StableDiffusion(stable_diffusion(dtype=torch.float64))
    steps = [], []
    for guidance, seen in zip((None, GaussianNoiseInput(0.5)), steps, strict=True):
        sample(
            model,
            [1],
            None,
            guidance,
            prompts=["a"],
            s0=3.0,
            steps=1,
            on_step=lambda step, _, seen=seen: seen.append(step),
        )
    (plain,), (noised,) = steps
    assert torch.equal(plain.x_t, noised.x_t)
    assert (plain.eps_cond - noised.eps_cond).abs().max() > 1e-4
    assert (plain.eps_uncond - noised.eps_uncond).abs().max() > 1e-4


def test_streams_of_methods_and_of_the_first_noise_are_unrelated():
    chain = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    one, two = (torch.randn(1000, generator=noise_of(name, 3)) for name in ("gni prompt", "gni null"))
    for a, b in ((chain, one), (one, two)):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.1
    assert words_of("cwr", 1).random() != words_of("rna", 1).random()


def test_a_guarded_pipeline_takes_rewritten_prompts():
    pipe = stable_diffusion()
    method = RandomNumbers()
    expected = pipe(
        method.prompts(["a"], [5]),
        generator=[torch.Generator().manual_seed(5)],
        num_inference_steps=2,
        output_type="pt",
    ).images
    options = {"num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(guard(pipe, method)("a", generator=torch.Generator().manual_seed(5), **options).images, expected)


@pytest.mark.parametrize("build", [CaptionWordRepetition, RandomNumbers, RandomTokens, GaussianNoiseInput])
def test_negative_strengths_are_refused(build):
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        build(-1)


def test_a_tokenizer_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="guidance.tokenizer: no CLIP tokenizer at"):
        RandomTokens(1, str(tmp_path / "none")).prompts(["a"], [0])
