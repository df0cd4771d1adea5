"""Broken Memories: detection and repairs worked by hand, norms learned from ordinary chains, bits kept elsewhere."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import stable_diffusion
from toy import made

from amg.guidance.rivals.broken_memories import BrokenMemories, Norms
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import guard, sample
from amg.sampling.ordinary import learn_norms
from amg.worlds.closed_form import ClosedForm
from experiments.cli.main import main

ROOT3 = 3**0.5  # the norm of (1, 1, 1)


def norms(early=0.9):
    """Five steps, the second at t = 0.5; all norms are 1 ± 0.1 there, in units of √3."""
    moments = ROOT3 * torch.tensor([1.0, 0.1], dtype=torch.float64).expand(5, 2)
    return Norms(torch.tensor([early, 0.5, 0.4, 0.3, 0.2]), moments, moments, moments)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)


def second_step(x0, update, **options):
    """ε and state of the step at t = 0.5, after one at t = 0.9 from which x came by `update`."""
    guidance = BrokenMemories(norms(), **options)
    step = made()
    first = replace(step, t=torch.full((3,), 0.9), x_t=step.x_t - rows(*update), x0=rows(1.0, 1.0, 1.0))
    eps, state = guidance(first, None)
    assert eps is first.eps and not state.flagged.any() and state.z_update.isnan().all()
    x0 = rows(*x0)
    step = replace(step, x0=x0, eps=(step.x_t - 0.8 * x0) / 0.6)
    return guidance, step, *guidance(step, state)


def test_a_chain_is_detected_only_where_both_norms_are_out():
    _, step, eps, state = second_step(x0=[1.5, 1.5, 1.2], update=[1.5, 1.2, 1.5])
    assert state.z_x0.tolist() == pytest.approx([5, 5, 2]) and state.z_update.tolist() == pytest.approx([5, 2, 5])
    assert state.flagged.tolist() == [True, False, False] and not state.strong.any()
    assert torch.equal(eps[1:], step.eps[1:]), "the others keep their bits"


def test_mild_scales_x0_to_the_ordinary_norm_and_only_early():
    _, step, eps, _ = second_step(x0=[1.5, 1.0, 1.0], update=[0.5, 1.0, 1.0], early=0.4)
    torch.testing.assert_close(step.predict_x0(eps)[:1], rows(1.0))
    _, step, eps, state = second_step(x0=[1.5, 1.0, 1.0], update=[0.5, 1.0, 1.0], early=0.2)  # step 1 of 5 is late
    assert eps is step.eps and state.flagged[0]


def test_strong_clamps_the_update_and_then_the_sample():
    # z(x̂0) = 20: strong. x_t = 0.8; the scheduler goes to −1.2, an update of 2, clamped to 1 + 3 · 0.1 = 1.3: −0.5;
    # its norm of 0.5 is clamped to 1 − 0.3 = 0.7
    guidance, step, eps, state = second_step(x0=[3.0, 1.5, 1.0], update=[2.0, 2.0, 1.0])
    assert state.strong.tolist() == [True, False, False] and state.flagged.tolist() == [True, True, False]
    assert torch.equal(eps[0], step.eps[0]), "strong leaves x̂0 alone"
    x_prev = rows(-1.2, -1.2, -1.2)
    shift = guidance.shift(step, eps, state, x_prev)
    torch.testing.assert_close(x_prev + shift, rows(-0.7, -1.2, -1.2))
    assert torch.equal((x_prev + shift)[1:], x_prev[1:])


def test_once_detected_a_chain_stays_so_and_its_severity_too():
    guidance, step, _, state = second_step(x0=[1.5, 3.0, 1.0], update=[2.0, 2.0, 1.0])
    later = replace(step, t=torch.full((3,), 0.4), x0=rows(3.0, 1.0, 1.0))
    _, state = guidance(later, state)
    assert state.flagged.tolist() == [True, True, False] and state.strong.tolist() == [False, True, False]


def test_other_steps_than_the_learned_ones_are_refused_by_name():
    guidance = BrokenMemories(norms())
    with pytest.raises(ValueError, match="guidance.norms: learned at 5 steps, none of them at t = 0.7"):
        guidance(made(t=torch.full((3,), 0.7)), None)


def test_what_learns_the_norms_is_called_when_ready_and_no_sooner():
    calls = []
    guidance = BrokenMemories(lambda: calls.append(1) or norms(), detect=2.5)
    with pytest.raises(ValueError, match="guidance.norms: not learned yet"):
        guidance(made(), None)
    assert not calls
    ready = guidance.ready()
    assert calls == [1] and ready.detect == 2.5 and ready.ready() is ready


@pytest.fixture(scope="module")
def world():
    model = ClosedForm(size=16, dtype=torch.float64)
    ordinary = [prompt for prompt in model.world().prompts if model.cause(prompt) == "ordinary"][:12]
    return model, ordinary, learn_norms(model, range(100, 112), ordinary, batch_size=5, s0=3.0, steps=10)


def test_learned_norms_are_those_of_the_chains(world):
    model, ordinary, learned = world
    chain = []
    last = sample(
        model, range(100, 112), prompts=ordinary, s0=3.0, steps=10, on_step=lambda step, _: chain.append(step)
    )
    after = torch.stack([*(step.x_t for step in chain[1:]), last]).flatten(2)
    update = after - torch.stack([step.x_t for step in chain]).flatten(2)
    x0 = torch.stack([step.x0 for step in chain]).flatten(2)
    for found, values in ((learned.x0, x0), (learned.update, update), (learned.sample, after)):
        size = values.norm(dim=2)
        torch.testing.assert_close(found, torch.stack([size.mean(1), size.std(1)], 1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(learned.times, torch.stack([step.t[0] for step in chain]).float(), rtol=0, atol=1e-6)


def test_ordinary_chains_and_a_bound_of_inf_stay_bit_identical(world):
    model, ordinary, learned = world
    options = {"prompts": ordinary, "s0": 3.0, "steps": 10}
    plain = sample(model, range(200, 212), **options)
    watched = sample(model, range(200, 212), guidance=BrokenMemories(learned, detect=float("inf")), **options)
    assert torch.equal(plain, watched)
    states = []
    guarded = sample(
        model, range(200, 212), guidance=BrokenMemories(learned), on_step=lambda _, s: states.append(s), **options
    )
    untouched = ~states[-1].flagged
    assert untouched.sum() >= 8 and torch.equal(guarded[untouched], plain[untouched])


@pytest.mark.parametrize("strong", [0.0, float("inf")], ids=["strong", "mild"])
def test_a_sample_depends_on_its_seed_alone(world, strong):
    model, _, learned = world
    guidance = BrokenMemories(learned, detect=0.3, strong=strong, early=1.0)  # so low that most chains are repaired
    prompts = [prompt for prompt in model.world().prompts if model.cause(prompt) != "ordinary"][:4]
    four = sample(model, [1, 2, 3, 4], guidance=guidance, prompts=prompts, s0=3.0, steps=10)
    ones = [sample(model, [i + 1], guidance=guidance, prompts=prompts[i : i + 1], s0=3.0, steps=10) for i in range(4)]
    torch.testing.assert_close(torch.cat(ones), four, rtol=0, atol=1e-6)
    assert not torch.equal(four, sample(model, [1, 2, 3, 4], prompts=prompts, s0=3.0, steps=10))


def test_a_guarded_pipeline_gives_what_sample_gives_shift_included():
    pipe = stable_diffusion(dtype=torch.float64)
    model, options = StableDiffusion(pipe), {"s0": 5.0, "steps": 4}
    guidance = BrokenMemories(learn_norms(model, range(8), ["sea", "elk"] * 4, **options), detect=0.1, strong=0.0)
    generators = [torch.Generator().manual_seed(seed) for seed in (31, 32)]
    call = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 5.0, "generator": generators}
    guarded = guard(pipe, guidance)(["a", "b"], **call).images
    ours = sample(model, [31, 32], guidance=guidance, prompts=["a", "b"], **options)
    torch.testing.assert_close(guarded, ours, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, sample(model, [31, 32], prompts=["a", "b"], **options))


@pytest.mark.slow
def test_a_run_learns_its_norms_first_and_a_finished_one_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["guidance=broken_memories", "guidance.norms.n=4", "n_samples=2", "sampler.steps=5", "output_dir=out"]
    command += ["metrics.extractor=none", "trainer=cpu"]
    assert main(command) == 0
    assert "learning the norms of 4 ordinary trajectories" in capsys.readouterr().out
    assert main(command) == 0
    assert "learning the norms" not in capsys.readouterr().out
    assert main([*command[:1], "guidance.norms.n=1", "output_dir=other"]) == 2
    assert "error: guidance.norms.n must be >= 2, got 1" in capsys.readouterr().err


def test_bad_settings_name_their_key():
    with pytest.raises(ValueError, match="guidance.detect must be >= 0, got -1"):
        BrokenMemories(norms(), detect=-1)
    with pytest.raises(ValueError, match=r"guidance.early must lie in \[0, 1\], got 10"):
        BrokenMemories(norms(), early=10)
    with pytest.raises(ValueError, match="give two seeds at least, got 1"):
        learn_norms(None, [0])
