"""The CIFAR-10 networks: parity with an independent reference, respacing, learned variance."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from reference_iddpm import Spaced, pair

from amg.models.ddpm import DDPM, iddpm_cifar10_cond
from amg.models.iddpm import restore, save, unet
from amg.sampling import sample


def difference(reference, model, labels=None, batch=2):
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    condition = None if labels is None else model.encode(labels)
    worst = 0.0
    for timestep in (0, 16, 1999, 3999):
        eps, variance = model(x, torch.tensor(timestep), condition)
        with torch.no_grad():
            expected = reference(x, torch.full((batch,), timestep / 4), condition)
        assert expected.std() > 0.1  # nothing has died out
        worst = max(worst, (torch.cat([eps, variance], 1) - expected).abs().max().item())
    return worst


def draws(seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda i=None: torch.stack([torch.randn(3, 32, 32, generator=g) for g in generators])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("small"), width=32)


@pytest.fixture(scope="module")
def small_cond(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("small_cond"), width=32, labels=10)


def test_converted_network_equals_the_reference(small):
    assert difference(*small) <= 1e-4


def test_converted_conditional_network_equals_the_reference(small_cond):
    assert difference(*small_cond, labels=[3, 9]) <= 1e-4


@pytest.mark.parametrize("which", ["small", "small_cond"])
def test_restored_names_are_those_of_the_checkpoint(which, request):
    reference, model = request.getfixturevalue(which)
    state = restore(model.network)
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in reference.state_dict().items())


@pytest.mark.slow
def test_true_size_network_equals_the_reference(tmp_path):
    reference, model = pair(tmp_path)
    assert sum(p.numel() for p in model.network.parameters()) == 52_546_438
    assert difference(reference, model, batch=1) <= 1e-4


def test_250_of_4000_steps_are_respaced_as_in_improved_diffusion(small):
    scheduler = DDPMScheduler.from_config(small[1].scheduler.config)
    scheduler.set_timesteps(250)
    assert scheduler.timesteps.tolist() == Spaced().timesteps[::-1]
    assert scheduler.timesteps[:3].tolist() == [3999, 3983, 3967]


@pytest.mark.slow
def test_one_respaced_chain_equals_the_reference(small):
    reference, model = small
    noise = draws([5])
    expected = Spaced().chain(reference, noise(), noise)
    assert (sample(model, [5], steps=250) - expected).abs().max() <= 1e-3


@pytest.mark.slow
def test_a_chain_of_the_true_size_equals_the_reference(tmp_path):
    """All 250 of 4000 steps of the network of 52.5 M weights, random ones: some 100 s of one core, both chains."""
    reference, model = pair(tmp_path)
    noise = draws([5])
    expected = Spaced().chain(reference, noise(), noise)
    assert expected.std() > 0.1
    assert (sample(model, [5], steps=250) - expected).abs().max() <= 1e-3


def test_conditional_chain_at_plain_scale_equals_the_reference(small_cond):
    reference, model = small_cond
    noise = draws([5, 6])
    expected = Spaced(steps=25).chain(reference, noise(), noise, labels=torch.tensor([7, 2]))
    assert (sample(model, [5, 6], prompts=[7, 2], steps=25) - expected).abs().max() <= 1e-3


def test_step_variance_is_the_learned_one_at_every_step(small):
    reference, model = small
    spaced, seen = Spaced(steps=12), []
    sample(model, [5], steps=12, on_step=lambda step, state: seen.append(step))
    for i, step in zip(reversed(range(12)), seen, strict=True):
        with torch.no_grad():
            _, log_variance = spaced.posterior(reference, step.x_t, i)
        torch.testing.assert_close(step.variance, log_variance.exp().float(), rtol=5e-3, atol=0)  # float32 tables


def test_a_sampler_without_learned_variance_ignores_its_channels(small):
    from diffusers import DDIMScheduler

    seen = []
    x0 = sample(small[1], [5], scheduler=DDIMScheduler, steps=3, on_step=lambda step, state: seen.append(step))
    assert x0.shape == (1, 3, 32, 32) and seen[0].variance is None


def test_cfg_without_a_null_label_is_refused(small_cond):
    with pytest.raises(ValueError, match="no null label.*s0=1"):
        sample(small_cond[1], [5], prompts=[3], s0=2.0, steps=2)


def test_null_label_is_the_row_that_the_folder_names(tmp_path):
    save(unet(width=32, labels=11), tmp_path)
    (tmp_path / "amg.json").write_text(json.dumps({"timestep_scale": 0.25, "null_label": 10}))
    model = DDPM(tmp_path)
    assert model.encode([None, 9]).tolist() == [10, 9]
    with pytest.raises(ValueError, match="0 … 9, got 10"):
        model.encode([10])
    assert sample(model, [5], prompts=[3], s0=2.0, steps=2).isfinite().all()


def test_digest_names_the_weights(tmp_path, small, small_cond):
    again = DDPM(save(small[1].network, tmp_path))
    assert small[1].digest == again.digest != small_cond[1].digest
    with torch.no_grad():
        again.network.conv_out.bias[0] += 1e-3
    del again.digest
    assert again.digest != small[1].digest


def test_ten_labels_are_cifar10s_classes(tmp_path):
    model = iddpm_cifar10_cond(save(unet(width=32, labels=10), tmp_path))
    assert model.classes[3] == "cat" and len(model.classes) == 10


@pytest.mark.parametrize("label", [-1, 10, 2.0, "cat", True])
def test_bad_label_is_named(small_cond, label):
    with pytest.raises(ValueError, match=r"0 … 9, got"):
        small_cond[1].encode([0, label])


def test_unconditional_network_refuses_a_label(small):
    assert small[1].encode([None, None]) is None
    with pytest.raises(ValueError, match="unconditional.*got 3"):
        small[1].encode([None, 3])


def test_flat_folder_with_fixed_variance_and_eps_is_read(tmp_path):
    # the layout of google/ddpm-cifar10-32
    network = UNet2DModel(
        sample_size=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
    )
    network.save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large").save_pretrained(tmp_path)
    model = DDPM(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    eps, variance = model(x, torch.tensor(500), None)
    assert variance is None
    torch.testing.assert_close(eps, network.eval()(x, 500).sample.detach(), rtol=0, atol=1e-5)
    assert sample(model, [1], steps=2).isfinite().all()


# -- bad input: one line that names the file and the mend -----------------------------------------------------------
