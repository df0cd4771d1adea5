"""What goes wrong with the CIFAR-10 networks is told in a line: missing, foreign and broken checkpoints and folders."""

import json
import pickle

import pytest
import torch
from PIL import Image
from reference_iddpm import pair

from amg.models.ddpm import DDPM, ddpm_cifar10, iddpm_cifar10, iddpm_cifar10_cond
from amg.models.iddpm import convert, save, unet


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("small"), width=32)


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
    for part in ("none.pt", "https://", "cifar10_uncond_50M_500K.pt", "210 MB", "ClosedForm()"):
        assert part in str(error.value)


def test_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="amg.models.iddpm .*210 MB.*|210 MB.*amg.models.iddpm.*ClosedForm"):
        iddpm_cifar10(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="train_iddpm_cifar10_cond.*ClosedForm"):
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
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 20 * i * i, 9)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"colour {i}")
    own = ["model=ddpm_cifar10", "model.path=net", "data=folder", "data.path=pictures", "metrics.extractor=none"]
    small = ["n_samples=1", "sampler.steps=1", "trainer=cpu", "output_dir=out"]
    code, _, told = command(*own, *small, "data.size=16")
    assert code == 2 and told.count("\n") == 1 and "Traceback" not in told
    assert told.startswith("error: model: ddpm_cifar10 draws images of 32×32, the bank's are 16×16")
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
    refused(tmp_path, moved, "64-pixel images; CIFAR-10's is for 32")


def test_other_networks_are_refused(tmp_path):
    refused(tmp_path, {"conv_in.weight": torch.ones(3)}, "no improved-diffusion network")


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, torch.ones(3)])
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    refused(tmp_path, content, "no state dict")


def test_the_state_of_an_optimizer_is_named_with_the_file_to_take(tmp_path):
    state = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()
    refused(tmp_path, state, "an optimizer's state: take ema_")


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
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder.*huggingface.co.*ClosedForm"):
        DDPM("nobody/nothing")
