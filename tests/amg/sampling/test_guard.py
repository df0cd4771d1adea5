"""guard: the same guidance inside the pipelines of diffusers, on tiny random ones."""

import functools

import pytest
import torch
from guarded import FLOWS, NAMES, PIPELINES, PROMPTS, amg, call, has_cfg, in_squares, remains, size_of
from tiny_pipelines import stable_diffusion

from amg.guidance import Guidance
from amg.guidance.watch import Watch
from amg.models.ddpm import DDPM
from amg.sampling import guard, sample
from amg.sampling.families import FAMILIES
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
    assert seen[0][0].s0 == (7.5 if has_cfg(name) else 1.0)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_crossed_threshold_changes_the_output(name):
    build, options = PIPELINES[name]
    pipe = build()
    expected = call(pipe, options)
    seen = []
    got = call(guard(pipe, amg(None, size_of(name)), on_step=lambda *each: seen.append(each)), options)
    assert got.isfinite().all() and (got - expected).flatten(1).abs().amax(1).min() > 1e-3
    text = has_cfg(name)
    for step, state in seen:  # at pure noise, where a flow begins, G_sim rests
        assert (
            ((state.sim > 0) == (step.alpha_bar > 1e-4)).all()
            and ((state.spe > 0) == text).all()
            and ((state.dup > 0) == text).all()
        )


@pytest.mark.parametrize("name", PIPELINES)
def test_the_edit_is_that_of_equations_13_to_17(name):
    """What the scheduler is given, less what the pipeline would have given it; G_sim alone where there is no text."""
    build, options = PIPELINES[name]
    pipe, steps, given = build(dtype=torch.float64), [], []
    plain = pipe.scheduler.step

    @functools.wraps(plain)
    def step_of_ours(output, *args, **kwargs):
        given.append(output)
        return plain(output, *args, **kwargs)

    pipe.scheduler.step = step_of_ours
    guidance = amg(None, size_of(name), c1=2.0, c2=9.0, c3=0.7)
    call(guard(pipe, guidance, on_step=lambda step, state: steps.append((step, state))), options)
    assert pipe.scheduler.step is step_of_ours
    capped = []
    for i, ((step, state), output) in enumerate(zip(steps, given, strict=True)):
        alpha_bar = step.alpha_bar.view(-1, 1, 1, 1)
        root, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x = step.x_t.clone().requires_grad_()
        x0 = (x - noise * step.eps) / root
        if step.clip:  # its value is clipped, the gradient passes
            x0 = x0 + (x0.clamp(-step.clip, step.clip) - x0).detach()
        match = guidance.similarity(step.decode(x0))
        (gradient,) = torch.autograd.grad(match.value.sum(), x)
        sigma = match.value.detach()
        expected = 0.7 * noise * gradient * (alpha_bar > 1e-4)  # Eq. 17
        assert (step.eps_cond is not None) == has_cfg(name)
        if has_cfg(name):
            s1 = torch.minimum(2.0 * sigma, torch.tensor(6.5)).clamp(min=0)  # Eq. 13
            s2 = torch.minimum(9.0 * sigma, 6.5 - s1).clamp(min=0)  # Eq. 15
            capped += (9.0 * sigma > 6.5 - s1).tolist()
            neighbour = step.denoise(torch.arange(3), [NAMES[i] for i in match.index])
            own = step.eps_cond - step.eps_uncond
            expected = expected - s1.view(-1, 1, 1, 1) * own  # Eq. 14
            expected = expected - s2.view(-1, 1, 1, 1) * (neighbour - step.eps_uncond)  # Eq. 16
            torch.testing.assert_close(state.s1, s1.to(state.s1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(state.s2, s2.to(state.s2), rtol=1e-5, atol=1e-6)
        used = root * output + noise * step.x_t if name == "sd v" else output
        used = in_squares(pipe, used)
        if name in FLOWS:  # x = x_t k and ε = x + (1−σ) v
            sigma = pipe.scheduler.sigmas[i].double()
            if step.alpha_bar[0] < 1e-4:  # seen from 1e-5
                continue
            used = step.x_t * ((1 - sigma) ** 2 + sigma**2).sqrt() + (1 - sigma) * used
        precise = {} if name[:4] in ("sana", "z_im") else {"rtol": 1e-6, "atol": 1e-8}  # those two compute in float32
        torch.testing.assert_close(
            (used - step.eps).to(expected), expected, **(precise or {"rtol": 1e-4, "atol": 1e-5})
        )
    assert len(steps) >= 3 and any(capped) == has_cfg(name)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_guarded_pipeline_without_text_equals_sample(name, guided, tmp_path):
    """The same network, scheduler and noise; text-to-image is in test_guard_schedulers.py."""
    pipe = PIPELINES[name][0](dtype=torch.float64)
    pipe.save_pretrained(tmp_path)
    model, method = DDPM(tmp_path, dtype=torch.float64), amg(None if guided else Constant(1e9), size_of(name))
    ours, theirs = [], []
    expected = sample(
        model, [5], guidance=method, steps=4, eta=0.5, on_step=lambda step, state: ours.append((step, state))
    )
    guarded = guard(pipe, method, on_step=lambda step, state: theirs.append((step, state)))
    options = {"eta": 0.5} if name == "ddim" else {}
    generator = torch.Generator().manual_seed(5)
    got = guarded(batch_size=1, generator=generator, num_inference_steps=4, output_type="pt", **options).images
    torch.testing.assert_close(got, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    for (step, state), (other, their) in zip(ours, theirs, strict=True):
        assert step.seeds == other.seeds == (5,)
        torch.testing.assert_close(step.x_t, other.x_t, rtol=0, atol=1e-6)
        torch.testing.assert_close(state.sim, their.sim, rtol=0, atol=1e-6)
        assert (state.sim > 0).all() == guided


@pytest.mark.parametrize("name", [name for name in PIPELINES if "without" not in name and name[0] != "d"])
def test_the_neighbours_branch_of_ones_own_prompt_is_ones_own_prediction(name):
    """Rows are sliced by name, whatever else the denoiser is fed: the prompt again gives the prediction again."""
    build, options = PIPELINES[name]
    pipe = build(dtype=torch.float64)
    checked = []

    class Asks(Guidance):
        def __call__(self, step, state):
            prompts = (options["prompt"] * 3)[:3]
            rows = torch.tensor([2, 0])
            got = step.denoise(rows, [prompts[2], prompts[0]])
            torch.testing.assert_close(got, step.eps_cond[rows], rtol=0, atol=1e-6)
            other = step.denoise(rows, ["zebra", "zebra"])
            far = step.alpha_bar[0] < 1e-4  # from there no text is seen in ε
            checked.append(far or (other - step.eps_cond[rows]).abs().max().item() > 1e-4)
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
            torch.testing.assert_close(step.predict(step.x_t[rows], rows), step.eps[rows], rtol=0, atol=1e-5)
            other = step.predict(step.x_t[rows] + 0.1, rows)
            checked.append((other - step.eps[rows]).flatten(1).abs().amax(1).min().item() > 1e-4)
            return step.eps, None

    call(guard(build(dtype=torch.float64), Asks()), options)
    assert len(checked) >= 3 and all(checked)


def test_half_of_a_batch_flagged_leaves_the_other_half_as_it_was():
    pipe = stable_diffusion()
    expected = call(pipe, {"prompt": PROMPTS})
    plain = amg()

    def similarity(images):
        """The last row is never alike, whatever its image."""
        match = plain.similarity(images)
        return match._replace(value=torch.cat([match.value[:-1], match.value[-1:] * 0 - 9]))

    guidance = amg()
    guidance.similarity, guidance.watch = similarity, Watch(similarity, Constant(-5.0))
    got = call(guard(pipe, guidance), {"prompt": PROMPTS})
    assert torch.equal(got[-1], expected[-1]) and not torch.equal(got[0], expected[0])


def test_the_table_of_tested_pipelines_is_tested():
    built = {type(build()).__name__ for build, _ in PIPELINES.values()}
    alike = {"Flux2Pipeline", "FluxImg2ImgPipeline", "StableDiffusion3Img2ImgPipeline"}  # see test_families.py
    alike |= {"StableDiffusion3ModularPipeline"}
    assert built == set(FAMILIES) - alike
