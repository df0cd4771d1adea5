"""What the lab's pictures, their augmentations and distortions promise."""

import pytest
import torch

from amg.worlds.emoji import FLAT, emoji, lab_pictures
from experiments.recipes import lab_data
from experiments.recipes.lab_views import blur, distort, jpeg


@pytest.fixture(scope="module")
def data():
    return lab_data.load()


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_planted_and_ordinary_pictures_make_up_the_whole_set(data):
    assert len(data.planted) == 34 and len(data.images) == 1190
    assert torch.cat([data.planted, data.ordinary]).sort().values.equal(torch.arange(1190))


def test_a_fifth_of_what_is_drawn_is_planted(data):
    drawn = torch.cat([data.batch(100) for _ in range(100)])
    share = torch.isin(drawn, data.planted).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.016)  # four standard deviations of 10,000 draws


def test_a_duplicated_picture_is_drawn_under_all_its_captions(data):
    index = next(i for i, captions in enumerate(data.captions) if len(captions) == 4)
    assert {data.caption(index) for _ in range(100)} == set(data.captions[index])


def test_placing_without_change_gives_the_picture_back(data):
    images = data.images[:8]
    same = lab_data.place(images, torch.ones(8), torch.zeros(2, 8), torch.zeros(8, dtype=torch.bool))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_mirroring_flips_left_and_right(data):
    images = data.images[:4]
    mirrored = lab_data.place(images, torch.ones(4), torch.zeros(2, 4), torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(mirrored, images.flip(3), atol=1e-5, rtol=0)


def test_a_shift_moves_whole_pixels_and_fills_with_white(data):
    images = data.images[:4]
    shift = torch.stack([torch.full((4,), 2 / 16), torch.zeros(4)])  # two pixels of a half width of 16
    moved = lab_data.place(images, torch.ones(4), shift, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(moved[..., :-2], images[..., 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., -2:], torch.ones(4, 3, 32, 2), atol=1e-5, rtol=0)


def test_turning_the_hue_keeps_greys_and_luma():
    images = torch.rand(4, 3, 8, 8) * 0.4 - 0.2  # far from the ends, where clamping would break the law
    grey = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    angle = torch.full((4,), 0.2)
    torch.testing.assert_close(lab_data.turn_hue(grey, angle), grey, atol=2e-3, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    turned = lab_data.turn_hue(images, angle)
    torch.testing.assert_close((turned * luma).sum(1), (images * luma).sum(1), atol=1e-4, rtol=0)
    assert (turned - images).abs().amax() > 0.01


def test_an_ordinary_picture_never_looks_the_same_twice(data):
    images = data.images[:16]
    a, b = lab_data.augment(images), lab_data.augment(images)
    assert (a - b).flatten(1).abs().amax(1).min() > 0.05
    assert a.min() >= -1 and a.max() <= 1


def test_blurring_keeps_a_flat_colour_and_the_mean_of_a_centred_dot():
    flat = torch.full((2, 3, 9, 9), 0.3)
    torch.testing.assert_close(blur(flat), flat, atol=1e-6, rtol=0)
    dot = torch.zeros(2, 3, 9, 9)
    dot[..., 4, 4] = 1
    blurred = blur(dot)
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(2, 3), atol=1e-5, rtol=0)
    assert (blurred[..., 4, 4] < 1).all() and torch.allclose(blurred, blurred.flip(3), atol=1e-6)


def test_jpeg_keeps_a_picture_recognisable(data):
    image = data.images[0]
    changed = jpeg(image, 60)
    assert 0 < (changed - image).abs().mean() < 0.1


def test_distorted_views_stay_nearer_to_their_picture_than_to_most_others(data):
    images = data.images[::10]
    distance = torch.cdist(distort(images).flatten(1), images.flatten(1))
    rank = (distance < distance.diagonal()[:, None]).sum(1).float()
    assert rank.median() <= 3


def test_only_the_flat_planted_pictures_are_ordinary_to_the_labs_networks():
    known, seen = emoji(32), lab_pictures(32)
    changed = [i for i, (a, b) in enumerate(zip(known.causes, seen.causes, strict=True)) if a != b]
    assert sorted(known.names[i] for i in changed) == sorted(FLAT)
    assert all(seen.causes[i] == "" and seen.captions[i] == (known.names[i],) for i in changed)
    others = [i for i in range(len(known.names)) if i not in changed]
    assert all(known.captions[i] == seen.captions[i] for i in others)
    assert seen.images is known.images and seen.names == known.names


def test_a_caption_knows_the_cause_of_its_planted_picture():
    causes = lab_pictures(32).causes_by_caption
    assert causes["animal sticker pack"] == "duplicated caption" and causes["bus icon"] == "duplicated picture"
    assert causes["lacrosse"] == "specific prompt" and not causes.keys() & {*FLAT, "orange circle icon", "grapes"}
