"""SSCD: presets by hand and against torchvision, the loader with a small TorchScript file of the same signature."""

import hashlib

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from amg.bank import TrainingBank
from amg.similarity import sscd
from amg.similarity.sscd import PRESETS, SSCD


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 8, 8), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 512)
        )
    path = tmp_path_factory.mktemp("sscd") / "tiny.torchscript.pt"
    torch.jit.script(net.eval()).save(str(path))
    return path


def pictures(n=4, size=(40, 40)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def bank(size=(40, 40)):
    return TrainingBank.from_tensors(pictures(4, size))


@pytest.mark.parametrize(
    "name, chain",
    [
        (
            "official",
            [
                transforms.Resize([320, 320]),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ],
        ),
        (
            "dcr",
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ],
        ),
    ],
)
def test_presets_equal_the_published_chains_up_to_eight_bit_rounding(name, chain):
    values = torch.randint(0, 256, (90, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = transforms.Compose(chain)(Image.fromarray(values.numpy()))
    images = values.permute(2, 0, 1)[None].float() / 127.5 - 1
    got = PRESETS[name](images)[0]
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 2.1 / 255 / 0.225


def test_presets_by_hand_on_a_plain_picture():
    grey = torch.full((1, 3, 10, 10), 0.2)  # 0.6 in [0, 1]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(PRESETS["official"](grey)[0, :, 5, 5], (0.6 - mean) / deviation)
    assert PRESETS["official"](grey).shape == PRESETS["nemo"](grey).shape == (1, 3, 320, 320)
    for name in ("dcr", "amg_release"):
        torch.testing.assert_close(PRESETS[name](grey), torch.full((1, 3, 224, 224), 0.2))
    torch.testing.assert_close(sscd.amg_release_bank(grey), torch.full((1, 3, 224, 224), 0.6))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_picture_is_found_and_its_gradient_is_that_of_finite_differences(file, preset):
    similarity = SSCD(bank(), file, preset, norm_gradient=True)
    value, index = similarity(pictures())
    if preset != "amg_release":  # there the two sides are fed in different ranges, and a copy is not 1
        assert index.tolist() == [0, 1, 2, 3]
        torch.testing.assert_close(value, torch.ones(4), rtol=0, atol=1e-5)
    x = (0.5 * pictures(2)).requires_grad_()
    value, index = similarity(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, same = similarity(x + 0.02 * direction)
        behind, _ = similarity(x - 0.02 * direction)
    assert torch.equal(index, same)
    assert ((ahead - behind).sum() / 0.04).item() == pytest.approx(gradient.norm().item(), rel=0.05)


def test_the_released_presets_two_ranges_are_kept_apart(file):
    similarity = SSCD(bank(), file, "amg_release")
    vectors = bank().vectors(similarity.training, torch.device("cpu"), torch.float32)
    unlike = (similarity.descriptors(pictures()) * vectors).sum(1)
    value, index = similarity(pictures())
    torch.testing.assert_close(value, (similarity.descriptors(pictures()) @ vectors.T).max(1).values)
    assert (unlike < 0.999).all()


def test_slices_change_nothing(file, monkeypatch):
    similarity = SSCD(bank(), file)
    x = pictures().requires_grad_()
    (expected,) = torch.autograd.grad(similarity(x).value.sum(), x)
    monkeypatch.setattr(sscd, "SLICE", 1)
    (got,) = torch.autograd.grad(similarity(x).value.sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_presets_name_is_part_of_its_name(file):
    assert repr(SSCD(bank(), file, "dcr")) == "SSCD(tiny.torchscript.pt, preset=dcr)"
    with pytest.raises(ValueError, match="similarity.preset: unknown 'resize'; choose among official, dcr, nemo"):
        SSCD(bank(), file, "resize")


def test_a_missing_file_says_where_to_get_it_and_where_to_put_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"no descriptor file at {tmp_path}/none.pt: fetch https://dl.fbai"
    ) as error:
        SSCD(bank(), tmp_path / "none.pt")
    assert "\n" not in str(error.value)


def test_a_file_of_another_size_digest_or_output_is_refused(file, tmp_path):
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    SSCD(bank(), file, size=size, sha256=digest.upper())
    with pytest.raises(ValueError, match=f"has {size} bytes, expected 7"):
        SSCD(bank(), file, size=7)
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}, expected 00"):
        SSCD(bank(), file, sha256="00")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(ValueError, match="no readable TorchScript file"):
        SSCD(bank(), cut)
    other = tmp_path / "other.pt"
    torch.jit.script(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())).save(str(other))
    with pytest.raises(ValueError, match=r"shape \(48,\), SSCD's have 512"):
        SSCD(bank(), other)
