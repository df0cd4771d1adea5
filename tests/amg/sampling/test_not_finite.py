"""Rows that are not finite pass untouched and are counted; a similarity that is not finite never passes as novel."""

import pytest
import torch
from diffusers import DDIMScheduler
from guarded import NAMES, PIPELINES, PROMPTS, TRANSFORMERS, amg, bank, denoiser_of, has_cfg, size_of
from tiny_pipelines import stable_diffusion
from toy import Toy

from amg.guidance import AntiMemorizationGuidance, Guidance
from amg.guidance.rivals.jain import StaticTransitionPoint
from amg.sampling import guard, sample
from amg.similarity import NormalizedL2
from amg.similarity.base import Match, measure
from amg.thresholds import Constant

COUNTED = "1 of 3 samples became NaN or infinite and were passed on unguarded: rows 1"


class Moves(Guidance):
    """Edits every row, whatever it holds."""

    def __call__(self, step, state):
        return torch.full_like(step.eps, 0.5), state


def latents(value: float) -> torch.Tensor:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x[1, 0, 0, 0] = value
    return x


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("guidance", [amg(Constant(1e9)), amg(), Moves(), StaticTransitionPoint(), Guidance()])
@pytest.mark.parametrize("extra", [{}, {"guidance_rescale": 0.7, "negative_prompt": ["ugly"] * 3}])
def test_one_broken_row_of_a_pipeline_is_passed_on_and_the_others_are_guided(value, guidance, extra):
    pipe = stable_diffusion()
    options = {"latents": latents(value), "num_inference_steps": 3, "output_type": "latent"} | extra
    bare = pipe(PROMPTS, **options).images
    with pytest.warns(UserWarning, match=COUNTED):
        got = guard(pipe, guidance)(PROMPTS, **options).images
    torch.testing.assert_close(got[1], bare[1], rtol=0, atol=0, equal_nan=True)
    assert got[[0, 2]].isfinite().all()
    changed = type(guidance) is not Guidance
    if isinstance(guidance, AntiMemorizationGuidance):
        changed = not isinstance(guidance.watch.threshold, Constant)
    assert torch.equal(got[[0, 2]], bare[[0, 2]]) != changed


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in TRANSFORMERS])
def test_a_network_that_breaks_one_sample_midway_breaks_that_one_alone(name):
    build, options = PIPELINES[name]
    pipe = build()
    calls, seen, network = [], [], denoiser_of(pipe)
    forward = network.forward

    def breaks(*args, **kwargs):
        calls.append(args)
        output = forward(*args, **kwargs)
        if len(calls) == 2:
            output[0][1] = torch.nan
        return output

    def once(step, state):
        seen.append(state)

    network.forward = breaks
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]
    kind = {"output_type": "latent"} if hasattr(pipe, "vae") else {"output_type": "pt"}
    watches = AntiMemorizationGuidance(amg(size=size_of(name)).similarity, Constant(-9.0), terms="sim")
    with pytest.warns(UserWarning, match=COUNTED):
        images = guard(pipe, watches, once)(**options, generator=generators, num_inference_steps=4, **kind).images
    assert images[[0, 2]].isfinite().all() and not images[1].isfinite().all()
    assert seen[0].similarity.isfinite().all()
    assert seen[-1].similarity.isnan().tolist() == seen[1].similarity.isnan().tolist() == [False, True, False]
    assert seen[-1].flagged.tolist() == [True, False, True]
    assert has_cfg(name) or len(calls) >= 3


def test_sample_passes_broken_rows_on_and_counts_them():
    class Breaks(Toy):
        def __call__(self, x_t, timestep, condition):
            output, variance = super().__call__(x_t, timestep, condition)
            return output.index_fill(0, torch.tensor([1]), torch.inf), variance

    with pytest.warns(UserWarning, match=COUNTED):
        x = sample(Breaks(DDIMScheduler()), [0, 1, 2], guidance=Moves(), steps=3)
    assert x[[0, 2]].isfinite().all() and not x[1].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_similarity_that_is_not_finite_for_a_finite_image_is_refused(value):
    def broken(images):
        return Match(torch.tensor([0.1, value, 0.2]), torch.zeros(3, dtype=torch.long))

    guidance = AntiMemorizationGuidance(broken, Constant(0.5), c3=1.0, captions=NAMES)
    with pytest.raises(ValueError, match=r"similarity broken is -?(nan|inf) for a finite image \(row 1\)"):
        guard(stable_diffusion(), guidance)(PROMPTS, num_inference_steps=2, output_type="latent")


def test_the_similarity_of_an_image_that_is_not_finite_is_nan_and_leaves_the_others_alone():
    nl2 = NormalizedL2(bank(), k=3)
    images = bank().pictures[:][:3] * 0.5
    expected = nl2(images)
    images[1, 2, 3, 4] = torch.inf
    got = measure(nl2, images)
    assert got.value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(got.value[[0, 2]], expected.value[[0, 2]])
    assert got.index[[0, 2]].tolist() == expected.index[[0, 2]].tolist()
