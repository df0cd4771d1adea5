"""SSCD: presets by hand and against torchvision, the loader with a small TorchScript file of the same signature."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from amg.bank import TrainingBank
from amg.similarity import sscd, sscd_file
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
    monkeypatch.setattr(sscd_file, "SLICE", 1)
    (got,) = torch.autograd.grad(similarity(x).value.sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_presets_name_is_part_of_its_name(file):
    assert repr(SSCD(bank(), file, "dcr")) == "SSCD(tiny.torchscript.pt, preset=dcr)"
    with pytest.raises(ValueError, match="similarity.preset: unknown 'resize'; choose among official, dcr, nemo"):
        SSCD(bank(), file, "resize")


def test_a_missing_file_says_where_to_get_it_and_where_to_put_it(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=f"no descriptor file at {tmp_path}/none.pt: fetch https://.*amg.similarity.sscd_file.fetch",
    ) as error:
        SSCD(bank(), tmp_path / "none.pt")
    assert "\n" not in str(error.value)


def test_a_file_of_another_size_digest_or_output_is_refused(file, tmp_path):
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    SSCD(bank(), file, size=size, sha256=digest.upper())
    with pytest.raises(ValueError, match=f"has {size:,} bytes, expected 7"):
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


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x)


class GeM(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(3.0).mean((2, 3)).pow(1 / 3)


class Torchvision(nn.Module):
    """Built as the authors' file of a torchvision network: the backbone ends in the linear layer."""

    dimensions = 512

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, self.dimensions)
        )
        self.embeddings = Norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.embeddings(self.backbone(x))


class Classy(Torchvision):
    """Built as that of a classy-vision network, `sscd_disc_large`: pooling, linear layer and norm in a row."""

    dimensions = 1024

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())
        self.embeddings = nn.Sequential(GeM(), nn.Linear(8, self.dimensions), Norm())


class Shifted(Torchvision):
    """Has the children of the authors' files and does something else after them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embeddings(self.backbone(x)) + 0.05)


class Twice(Torchvision):
    """Normalises in the backbone already."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(self.backbone, Norm())


WAYS = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, torch.rand(1, 3, 64, 64)),
    "freeze": lambda net: torch.jit.freeze(torch.jit.script(net)),
}


def published(folder, kind, way):
    """The file and its network."""
    net = kind().eval()
    torch.jit.save(WAYS[way](net), str(folder / "published.pt"))
    return folder / "published.pt", net


def slope(similarity, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(similarity(x).value.sum(), x)[0]


@pytest.mark.parametrize("preset", ["official", "amg_release"])
@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("kind", [Torchvision, Classy])
def test_at_a_copy_the_gradient_of_the_published_builds_vanishes_only_with_the_norm_s_part(tmp_path, kind, way, preset):
    file, net = published(tmp_path, kind, way)
    fixed, full = (SSCD(bank(), file, preset, norm_gradient=norm) for norm in (False, True))
    x = pictures()
    if preset == "amg_release":  # its training pictures lie in [0, 1], and these are copies of them all the same
        fixed.training = full.training = fixed
    assert fixed.pre_norm and full.pre_norm and fixed.described == f"published.pt, preprocessing {preset}"
    with torch.no_grad():
        torch.testing.assert_close(fixed.descriptors(x), net(PRESETS[preset](x)), rtol=0, atol=1e-6)
        torch.testing.assert_close(fixed(x).value, torch.ones(4), rtol=0, atol=1e-5)
    gradient = slope(fixed, x)
    assert (slope(full, x).flatten(1).norm(dim=1) < 1e-3 * gradient.flatten(1).norm(dim=1)).all()
    y = x.clone().requires_grad_()  # ∇ (eᵀn / c), with c = ‖e‖ held fixed, by the network itself
    layers = [net.backbone, *list(net.embeddings.children())[:-1]]
    e = nn.Sequential(*layers)(PRESETS[preset](y))
    n = F.normalize(e).detach()
    (expected,) = torch.autograd.grad(((e * n).sum(1) / e.norm(dim=1).detach()).sum(), y)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    "kind, way", [(Torchvision, "freeze"), (Classy, "freeze"), (Shifted, "script"), (Twice, "script")]
)
def test_a_file_that_leads_to_no_such_vector_keeps_its_output_and_says_so(tmp_path, kind, way):
    file, net = published(tmp_path, kind, way)
    similarity, x = SSCD(bank(), file), pictures()
    assert not similarity.pre_norm
    assert similarity.described == "published.pt, preprocessing official, with its own norm in the gradient"
    with torch.no_grad():
        torch.testing.assert_close(similarity.descriptors(x), net(PRESETS["official"](x)), rtol=0, atol=1e-6)
    at, beside = slope(similarity, x).norm(), slope(similarity, 0.5 * x).norm()
    assert at < 1e-3 * beside
    assert SSCD(bank(), file, norm_gradient=True).described == "published.pt, preprocessing official"


def test_a_file_that_does_not_normalise_has_nothing_to_reach(file):
    similarity = SSCD(bank(), file)
    assert similarity.pre_norm and slope(similarity, pictures()).norm() > 0.01


@pytest.mark.parametrize("kind", [Torchvision, Classy])
def test_slices_change_nothing_before_the_norm_either(tmp_path, monkeypatch, kind):
    similarity = SSCD(bank(), published(tmp_path, kind, "script")[0])
    expected = slope(similarity, pictures())
    monkeypatch.setattr(sscd_file, "SLICE", 1)
    torch.testing.assert_close(slope(similarity, pictures()), expected, rtol=1e-4, atol=1e-6)


def test_descriptors_of_a_large_or_small_scale_survive_half_precision(tmp_path):
    net = Torchvision()
    net.backbone[-1].weight.data *= 1e-7
    net.backbone[-1].bias.data *= 1e-7
    torch.jit.script(net.eval()).save(str(tmp_path / "small.pt"))
    found = sscd_file.TorchScript(tmp_path / "small.pt")(pictures(2, (224, 224)).half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float().norm(dim=1), torch.ones(2), rtol=0, atol=2e-3)
