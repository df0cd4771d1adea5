"""The Fréchet distance and its features against closed forms and independent implementations."""

import time

import pytest
import torch
from cleanfid.fid import compute_fid, fid_from_feats
from PIL import Image
from scipy.linalg import sqrtm

from amg.metrics import (
    features_of,
    features_of_files,
    fid,
    frechet_between,
    frechet_distance,
    matched_distance,
    moments,
)
from amg.metrics.efficientnet import EfficientNetLite0
from amg.metrics.extractors import Extractor, efficientnet_lite0, inception
from amg.worlds.drawings import training_images

# EfficientNet-Lite0 on a ramp at 224, by the package efficientnet-lite-pytorch 0.1.0: the five largest features
RAMP = {113: 4.49904, 897: 3.66108, 455: 3.53355, 930: 3.47236, 1277: 2.93091}
RAMP_NORM, RAMP_POSITIVE = 10.85833, 196


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def covariance(dim):
    root = normal(dim, dim + 2)
    return root @ root.T / dim


def colours():
    """The mean colour and its square: a real extractor small enough for a closed form."""

    def network(pixels):
        mean = pixels.mean((2, 3)) / 255
        return torch.cat([mean, mean.square()], 1)

    return Extractor("colours", "none", 6, network)


@pytest.fixture(scope="module")
def lite():
    return efficientnet_lite0(96)


# Fréchet


def test_frechet_of_gaussians_on_a_line():
    # (μ1 − μ2)² + (σ1 − σ2)² = 9 + 4
    value = frechet_distance(*(torch.tensor(x) for x in ([1.0], [[9.0]], [4.0], [[1.0]])))
    assert value == pytest.approx(13.0, rel=1e-12)


def test_frechet_of_commuting_covariances_is_the_distance_of_their_roots():
    basis = torch.linalg.qr(normal(8, 8)).Q
    a, b, mu1, mu2 = normal(8).square(), normal(8).square(), normal(8), normal(8)
    value = frechet_distance(mu1, basis * a @ basis.T, mu2, basis * b @ basis.T)
    assert value == pytest.approx(((mu1 - mu2).square().sum() + (a.sqrt() - b.sqrt()).square().sum()).item(), rel=1e-10)


def test_frechet_equals_scipys_matrix_root():
    mu1, mu2, cov1, cov2 = normal(12), normal(12), covariance(12), covariance(12)
    cross = sqrtm((cov1 @ cov2).numpy()).trace().real
    expected = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_is_symmetric_and_zero_of_itself():
    mu1, mu2, cov1, cov2 = normal(12), normal(12), covariance(12), covariance(12)
    there, back = frechet_distance(mu1, cov1, mu2, cov2), frechet_distance(mu2, cov2, mu1, cov1)
    assert there == pytest.approx(back, rel=1e-10)
    assert frechet_distance(mu1, cov1, mu1, cov1) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("n", [5, 40, 200])
def test_frechet_from_few_features_equals_that_of_their_moments(n):
    features, (mu, cov) = normal(n, 40), moments(normal(90, 40) + 1)
    assert frechet_between(features, mu, cov) == pytest.approx(frechet_distance(*moments(features), mu, cov), rel=1e-7)


def test_fid_by_clean_fids_inception_is_clean_fids_own_and_equals_ours():
    features, reference = normal(300, 12), normal(400, 12) + 0.3
    inception = Extractor("inception", "none", 12, lambda pixels: pixels, cleanfid=True)
    theirs = fid(features, reference, inception)
    assert theirs == fid_from_feats(features.numpy(), reference.numpy())
    assert theirs == pytest.approx(fid(features, reference, colours()), rel=1e-6)


def test_matched_distance_is_not_flattered_by_copies():
    reference = normal(400, 6)
    novel, copies = normal(60, 6) * 1.3, reference[:60]
    unguided = torch.cat([copies, novel])
    mask = torch.arange(120) < 60
    guided = novel.flip(0)
    result = matched_distance(guided, unguided, mask, reference)
    assert (result["n"], result["reference_n"]) == (60, 400)
    assert result["ratio"].mean == pytest.approx(1, rel=1e-9)  # the same pictures, so neither better nor worse
    mu, cov = moments(reference)
    assert frechet_between(unguided[:60], mu, cov) < 0.5 * result["unguided"]  # what copies would have lent
    # as many on both sides, however many there are
    more = matched_distance(torch.cat([guided, novel]), unguided, mask, reference)
    assert more["ratio"].mean == pytest.approx(1, rel=1e-9)
    assert matched_distance(guided, copies, mask[:60], reference)["ratio"] is None


def test_standard_error_of_a_matched_ratio_is_the_spread_of_repeated_runs():
    reference, none = normal(500, 6), torch.zeros(100, dtype=torch.bool)
    runs = [matched_distance(normal(100, 6) * 1.3, normal(100, 6) * 1.3, none, reference) for _ in range(100)]
    spread = torch.tensor([run["ratio"].mean for run in runs]).std()
    claimed = torch.tensor([run["ratio"].se for run in runs]).square().mean().sqrt()
    assert 0.7 < claimed / spread < 1.4


# EfficientNet


def test_efficientnet_features_are_those_of_the_published_network():
    features = EfficientNetLite0.pretrained()(torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224))[0]
    assert features.shape == (1280,)
    assert features.topk(5).indices.tolist() == list(RAMP)
    assert features.topk(5).values.tolist() == pytest.approx(list(RAMP.values()), abs=1e-3)
    assert features.norm().item() == pytest.approx(RAMP_NORM, rel=1e-4)
    assert (features > 0).sum() == RAMP_POSITIVE


def test_efficientnet_features_are_deterministic_and_do_not_depend_on_the_batch(lite):
    pictures = training_images(32).images[:8]
    together = lite(pictures)
    assert together.shape == (8, lite.dim) == (8, 1280)
    assert torch.equal(together, lite(pictures))
    alone = torch.cat([lite(picture[None]) for picture in pictures])
    assert (alone - together).abs().max() < 1e-4


def test_efficientnet_puts_images_of_one_thing_nearer_to_each_other(lite):
    training = training_images(32)
    rows = [[i for i, name in enumerate(training.things) if name == thing][:8] for thing in ("cactus", "fish")]
    cacti, fish = (torch.nn.functional.normalize(lite(training.images[some])) for some in rows)
    apart = (cacti @ fish.T).mean()
    assert (cacti @ cacti.T).mean() > apart + 0.05 and (fish @ fish.T).mean() > apart + 0.05


# the cache of features


def test_features_are_computed_once_per_content_and_extractor(tmp_path):
    seen = []

    def network(pixels):
        seen.append(len(pixels))
        return pixels.mean((2, 3))

    pictures = torch.rand(40, 3, 4, 4)
    first = Extractor("first", "none", 3, network)
    once = features_of(pictures, first, tmp_path)
    assert seen == [32, 8]
    assert torch.equal(features_of(pictures.clone(), first, tmp_path), once) and len(seen) == 2
    features_of(pictures, Extractor("first", "to 4", 3, network), tmp_path)
    assert len(seen) == 4
    changed = pictures.clone()
    changed[39, 2, 3, 3] += 0.5
    assert not torch.equal(features_of(changed, first, tmp_path), once) and len(seen) == 6
    assert len(list(tmp_path.iterdir())) == 3


def test_half_a_cache_file_is_computed_again(tmp_path):
    pictures = torch.rand(4, 3, 4, 4)
    whole = features_of(pictures, colours(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(features_of(pictures, colours(), tmp_path), whole)
    assert torch.equal(features_of(pictures, colours(), tmp_path), whole)


def test_features_of_files_equal_those_of_the_pictures_in_them(tmp_path):
    pictures = training_images(16).images[:5]
    files = write(pictures, tmp_path / "pictures")
    torch.testing.assert_close(features_of_files(files, colours(), None), features_of(pictures, colours(), None))


# clean-fid


def write(pictures, folder):
    folder.mkdir()
    files = [folder / f"{i:03d}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        array = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(file)
    return files


def as_is(array):  # at module level: data-loader workers pickle it
    return array


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clean_fids_distance_by_our_extractor_equals_ours(tmp_path, num_workers):
    """clean-fid would resize to 299 first; here the extractor resizes, once."""
    pictures, extractor = training_images(16).images, colours()
    write(pictures[:60], tmp_path / "a")
    write(pictures[60:150], tmp_path / "b")
    theirs = compute_fid(
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        custom_feat_extractor=lambda pixels: extractor(pixels / 127.5 - 1),
        custom_fn_resize=as_is,
        device=torch.device("cpu"),
        num_workers=num_workers,
        verbose=False,
    )
    ours = fid(extractor(pictures[:60]), extractor(pictures[60:150]), extractor)
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_missing_inception_weights_say_in_one_line_where_to_put_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put inception-2015-12-05\.pt .*efficientnet_lite0") as error:
        inception(tmp_path / "inception-2015-12-05.pt")
    assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) == 1


class Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = x[:, :, 0, 0].mean(1, keepdim=True)
        return torch.cat([corner, x.mean((1, 2, 3)).unsqueeze(1), torch.zeros(len(x), 2046)], 1)


class TinyInception(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_inception_gets_clean_fids_299_pixels_and_normalisation(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(TinyInception()).save(str(path))
    extractor = inception(path)
    white, black = torch.ones(1, 3, 16, 16), -torch.ones(1, 3, 16, 16)
    features = extractor(torch.cat([white, black]))
    # clean-fid asserts 299 × 299 itself; (255 − 128) / 128 and (0 − 128) / 128
    assert features.shape == (2, 2048)
    assert features[:, 0].tolist() == pytest.approx([127 / 128, -1.0], abs=1e-6)
    assert features[:, 1].tolist() == pytest.approx([127 / 128, -1.0], abs=1e-4)
    assert (extractor.name, extractor.resize) == ("inception (clean-fid)", "PIL bicubic 299")


# speed


def test_a_distance_of_128_pictures_costs_less_than_a_third_of_the_general_one():
    features, (mu, cov) = normal(128, 1280), moments(normal(1500, 1280))

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    fast = min(seconds(lambda: frechet_between(features, mu, cov)) for _ in range(3))
    general = seconds(lambda: frechet_distance(*moments(features), mu, cov))
    assert fast < general / 3
