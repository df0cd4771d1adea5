"""guard: the same guidance inside the pipelines of diffusers, on tiny random ones."""

import pytest
import torch
from guarded import NAMES, PIPELINES, PROMPTS, amg, call, remains, size_of
from tiny_pipelines import stable_diffusion

from amg.guidance import Guidance
from amg.pipelines import TESTED, guard
from amg.thresholds import Constant


@pytest.mark.parametrize("name", PIPELINES)
def test_a_threshold_that_is_never_crossed_leaves_the_bare_pipelines_output_bit_by_bit(name):
    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    before = remains(pipe)
    seen = []
    guarded = guard(pipe, amg(Constant(1e9), size_of(name)), on_step=lambda step, state: seen.append((step, state)))
    assert torch.equal(call(guarded, options), expected)
    assert remains(pipe) == before
    assert len(seen) == (3 if name == "img2img" else 4) and not any(state.flagged.any() for _, state in seen)
    assert seen[0][0].s0 == (1.0 if "without" in name or name in ("ddpm", "ddim") else 7.5)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_crossed_threshold_changes_the_output(name):
    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    states = []
    got = call(guard(pipe, amg(None, size_of(name)), on_step=lambda step, state: states.append(state)), options)
    assert got.isfinite().all() and (got - expected).flatten(1).abs().amax(1).min() > 1e-3
    text = not ("without" in name or name in ("ddpm", "ddim"))
    for state in states:
        assert (state.sim > 0).all() and ((state.spe > 0) == text).all() and ((state.dup > 0) == text).all()


def test_the_edit_is_that_of_equations_13_to_17():
    pipe = stable_diffusion(dtype=torch.float64)
    seen = []
    guidance = amg(c1=0.5, c2=1.5, c3=0.7)
    call(guard(pipe, guidance, on_step=lambda step, state: seen.append((step, state))), {"prompt": PROMPTS}, steps=3)
    for step, state in seen:
        edited, again = guidance(step, None)
        sigma = state.similarity
        s1 = torch.minimum(0.5 * sigma, torch.tensor(6.5)).clamp(min=0)
        s2 = torch.minimum(1.5 * sigma, 6.5 - s1).clamp(min=0)
        neighbour = step.denoise(torch.arange(3), [NAMES[i] for i in state.index])
        x = step.x_t.clone().requires_grad_()
        noise = (1 - step.alpha_bar).sqrt().view(-1, 1, 1, 1)
        x0 = (x - noise * step.eps) / step.alpha_bar.sqrt().view(-1, 1, 1, 1)
        (gradient,) = torch.autograd.grad(guidance.similarity(step.decode(x0)).value.sum(), x)
        expected = (
            -s1.view(-1, 1, 1, 1) * (step.eps_cond - step.eps_uncond)
            - s2.view(-1, 1, 1, 1) * (neighbour - step.eps_uncond)
            + 0.7 * noise * gradient
        )
        torch.testing.assert_close(edited - step.eps, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in PIPELINES if "without" not in name and name[0] != "d"])
def test_the_neighbours_branch_of_ones_own_prompt_is_ones_own_prediction(name):
    """Rows are sliced by name, whatever else the denoiser is fed: the prompt again gives the prediction again."""
    build, options = PIPELINES[name]
    pipe = build()
    checked = []

    class Asks(Guidance):
        def __call__(self, step, state):
            prompts = (options["prompt"] * 3)[:3]
            rows = torch.tensor([2, 0])
            got = step.denoise(rows, [prompts[2], prompts[0]])
            torch.testing.assert_close(got, step.eps_cond[rows], rtol=1e-4, atol=1e-5)
            other = step.denoise(rows, ["zebra", "zebra"])
            checked.append((other - step.eps_cond[rows]).abs().max().item() > 1e-4)
            return step.eps, None

    call(guard(pipe, Asks()), options)
    assert len(checked) >= 3 and all(checked)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_prediction_at_the_same_place_is_the_same_and_at_another_another(name):
    build, options = PIPELINES[name]
    checked = []

    class Asks(Guidance):
        def __call__(self, step, state):
            rows = torch.tensor([2, 0])
            torch.testing.assert_close(step.predict(step.x_t[rows], rows), step.eps[rows], rtol=1e-4, atol=1e-5)
            other = step.predict(step.x_t[rows] + 0.1, rows)
            checked.append((other - step.eps[rows]).flatten(1).abs().amax(1).min().item() > 1e-4)
            return step.eps, None

    call(guard(build(), Asks()), options)
    assert len(checked) >= 3 and all(checked)


def test_half_of_a_batch_flagged_leaves_the_other_half_as_it_was():
    pipe = stable_diffusion()
    expected = call(pipe, {"prompt": PROMPTS})
    plain = amg()
    guidance = amg()
    # the first row is never alike, whatever its picture
    guidance.similarity = lambda x: (lambda m: m._replace(value=torch.cat([m.value[:-1], m.value[-1:] * 0 - 9])))(
        plain.similarity(x)
    )
    guidance.threshold = Constant(-5.0)
    got = call(guard(pipe, guidance), {"prompt": PROMPTS})
    assert torch.equal(got[-1], expected[-1]) and not torch.equal(got[0], expected[0])


def test_the_table_of_tested_pipelines_is_tested():
    built = {type(build()).__name__ for build, _ in PIPELINES.values()}
    assert built == set(TESTED)
