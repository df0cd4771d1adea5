"""The CIFAR-10 networks: parity with an independent reference, respacing, learned variance, and what goes wrong."""

import json
import pickle

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from reference_iddpm import Spaced, random_network

from amg.models.convert_iddpm import convert, restore, save, unet
from amg.models.ddpm import DDPM, ddpm_cifar10, iddpm_cifar10, iddpm_cifar10_cond
from amg.sampling import sample


def pair(tmp_path, **options):
    """A reference network with random weights, and the converted model."""
    reference = random_network(**options)
    torch.save(reference.state_dict(), tmp_path / "checkpoint.pt")
    return reference, DDPM(convert(tmp_path / "checkpoint.pt", tmp_path / "converted"))


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


@pytest.fixture
def state(small):
    return dict(small[0].state_dict())


def refused(tmp_path, content, message, write=torch.save):
    path = tmp_path / "bad.pt"
    write(content, path)
    with pytest.raises(ValueError, match=message) as error:
        convert(path, tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint_says_where_to_get_it_how_big_it_is_and_what_runs_now(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        convert(tmp_path / "none.pt", tmp_path / "out")
    for part in ("none.pt", "https://", "cifar10_uncond_50M_500K.pt", "210 MB", "model=closed_form"):
        assert part in str(error.value)


def test_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="convert_iddpm .*210 MB.*|210 MB.*convert_iddpm.*closed_form"):
        iddpm_cifar10(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="train_iddpm_cifar10_cond.*closed_form"):
        iddpm_cifar10_cond(tmp_path / "none")


def test_a_hub_that_cannot_be_reached_says_what_to_download_and_its_size(tmp_path, monkeypatch):
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with pytest.raises(FileNotFoundError, match=r"^model.path: .*google/ddpm-cifar10-32 \(about 143 MB\)"):
        ddpm_cifar10()
    with pytest.raises(FileNotFoundError, match="huggingface.co/some/other where"):
        ddpm_cifar10("some/other")


def test_a_network_of_another_resolution_than_the_pictures_is_told_in_a_line(command, tmp_path):
    save(unet(width=32), tmp_path / "net")  # draws 32×32
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 0, 9)).save(tmp_path / "pictures" / f"{i}.png")
    own = ["model=ddpm_cifar10", "model.path=net", "data=folder", "data.path=pictures", "metrics.extractor=none"]
    small = ["n_samples=1", "sampler.steps=1", "trainer=cpu", "output_dir=out"]
    code, _, told = command(*own, *small, "data.size=16")
    assert code == 2 and told.count("\n") == 1 and "Traceback" not in told
    assert told.startswith("error: model: ddpm_cifar10 draws pictures of 32×32, the bank's are 16×16")
    assert "similarity=nl2 compares pixels" in told and "data.size=32" in told
    assert not (tmp_path / "out").exists()
    code, _, told = command(*own, *small, "data.size=32")
    assert code == 0, told


def test_conditional_name_refuses_an_unconditional_folder(tmp_path):
    with pytest.raises(ValueError, match="0 labels, CIFAR-10 has 10"):
        iddpm_cifar10_cond(save(unet(width=32), tmp_path))


def test_missing_key_is_named(tmp_path, state):
    del state["middle_block.1.qkv.bias"]
    refused(tmp_path, state, "misses 1 key.*middle_block.1.qkv.bias")


def test_unexpected_key_is_named(tmp_path, state):
    refused(tmp_path, state | {"ema.decay": torch.ones(1)}, "unexpected 1 key.*ema.decay")


def test_wrong_shape_is_named(tmp_path, state):
    bad = {"out_layers.3.weight": torch.zeros(32, 32, 1, 1)}
    refused(tmp_path, state | {f"input_blocks.1.0.{name}": value for name, value in bad.items()}, "expected .32, 32, 3")


def test_wrong_resolution_is_named(tmp_path, state):
    # a 64-pixel network has its attention, at 16 and 8 pixels, one level deeper
    moved = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "input_blocks" and parts[2] == "1":
            parts[1] = str(int(parts[1]) + 4)
        moved[".".join(parts)] = value
    refused(tmp_path, moved, "64-pixel pictures; CIFAR-10's is for 32")


def test_other_networks_are_refused(tmp_path):
    refused(tmp_path, {"conv_in.weight": torch.ones(3)}, "no improved-diffusion network")


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.ones(3)])
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    refused(tmp_path, content, "no state dict")


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    refused(tmp_path, Payload(), "no PyTorch state dict")
    refused(tmp_path, Payload(), "no PyTorch state dict", lambda value, path: path.write_bytes(pickle.dumps(value)))
    assert "this ran" not in capsys.readouterr().out


def test_truncated_checkpoint_is_refused(tmp_path, state):
    def write(content, path):
        torch.save(content, path)
        path.write_bytes(path.read_bytes()[:-5000])

    refused(tmp_path, state, "no PyTorch state dict", write)
    refused(tmp_path, b"", "no PyTorch state dict", lambda content, path: path.write_bytes(content))


@pytest.mark.parametrize("zipped, length", [(True, 50_000), (True, 6_660), (True, 100), (False, 6_642), (False, -9)])
def test_a_file_cut_anywhere_is_truncated_in_either_format_of_torch(tmp_path, state, zipped, length):
    def write(content, path):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:length])

    refused(tmp_path, state, r"no PyTorch state dict \(truncated\?\): download https", write)


@pytest.mark.parametrize(
    "content", [pickle.dumps({"a": 1}), b"<html>\n<body>404</body></html>", b"hello", pickle.dumps(Payload())]
)
def test_another_file_is_told_in_our_own_words_without_a_warning(tmp_path, content, recwarn):
    whole = r"bad.pt is no PyTorch state dict \(not a file of tensors\): download https\S* again$"
    refused(tmp_path, content, whole, lambda content, path: path.write_bytes(content))
    assert not list(recwarn)


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"input_blocks.0.0.weight": torch.tensor(1.0)}, "input_blocks.0.0.weight has 0 axes, expected 4"),
        ({"out.2.weight": torch.tensor(1.0)}, "out.2.weight has 0 axes, expected 4"),
        ({"label_emb.weight": torch.tensor(1.0)}, "label_emb.weight has 0 axes, expected 2"),
        ({"middle_block.1.qkv.weight": torch.zeros(5)}, r"qkv.weight is \(5,\), expected \(192, 64, 1\)"),
        ({"middle_block.1.qkv.bias": torch.zeros(191)}, r"qkv.bias is \(191,\), expected \(192,\)"),
        ({"input_blocks.0.0.weight": torch.zeros(33, 3, 3, 3)}, "another width than a multiple of 32"),
        ({"input_blocks.x.qkv.weight": torch.zeros(1)}, "unexpected 1 key"),
        ({7: torch.zeros(1)}, "no state dict"),
    ],
)
def test_weights_of_another_shape_or_name_are_told_not_raised(tmp_path, state, bad, said):
    refused(tmp_path, state | bad, said)


def test_the_unconditional_name_refuses_a_labelled_folder_unless_it_has_a_null_label(tmp_path):
    save(unet(width=32, labels=10), tmp_path)
    with pytest.raises(ValueError, match="10 labels and none for no label: model=iddpm_cifar10_cond"):
        iddpm_cifar10(tmp_path)
    (tmp_path / "amg.json").write_text(json.dumps({"timestep_scale": 0.25, "null_label": 9}))
    assert iddpm_cifar10(tmp_path).encode([None]).tolist() == [9]


def test_folder_without_weights_or_config_is_refused(tmp_path, small):
    save(small[1].network, tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights that fit"):
        DDPM(tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/config.json is missing"):
        DDPM(tmp_path)


def test_hub_name_out_of_reach_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder.*huggingface.co.*closed_form"):
        DDPM("nobody/nothing")
