"""Contracts of the shipped drawings and of the law that they span."""

from collections import Counter

import torch

from amg.worlds.drawings import CAUSES, Components, drawings, ordinary, planted_images, sample, training_images


def test_drawings_are_premultiplied_and_lie_in_the_unit_interval():
    images = drawings().images
    assert images.min() >= 0 and images.max() <= 1
    assert (images[:, :3] <= images[:, 3:] + 1 / 255).all()


def test_every_thing_has_several_drawings_and_one_group():
    data = drawings()
    assert min(Counter(data.things).values()) >= 6 and len(set(data.things)) >= 60
    assert len(set(zip(data.things, data.groups, strict=True))) == len(set(data.things))


def test_planted_captions_belong_to_one_cause():
    data = drawings()
    causes: dict[str, set[str]] = {}
    for captions, cause in zip(data.captions, data.causes, strict=True):
        for caption in captions:
            causes.setdefault(caption, set()).add(cause)
    assert all(len(found) == 1 for found in causes.values())
    assert {cause for found in causes.values() for cause in found} == {"", *CAUSES}


def test_a_composed_pixel_equals_the_formula():
    components = Components(
        foreground=torch.tensor([0.2, 0.0, 0.4]).view(1, 3, 1, 1),
        alpha=torch.full((1, 1, 1, 1), 0.5),
        drawing=torch.zeros(1),
    )
    image = components.image(torch.tensor([0]), torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[0.5, 0.0, -0.5]]))
    # 2 (colour (1 + tint) + (1 - alpha) background) - 1 = 2 (.3 + .5) - 1, 2 (0 + .25) - 1, 2 (.2 + 0) - 1
    torch.testing.assert_close(image.flatten(), torch.tensor([0.6, -0.5, -0.6]))


def test_half_of_the_components_are_mirror_images():
    components = ordinary(32)
    n = len(components.drawing) // 4
    torch.testing.assert_close(components.alpha[n : 2 * n], components.alpha[:n].flip(3))
    assert components.drawing[:n].equal(components.drawing[3 * n :])


def test_planted_images_stand_on_white():
    images = planted_images(32)
    assert (images[:, :, 0, :] == 1).all() and (images[:, :, :, -1] == 1).all()


def test_samples_depend_on_the_generator_alone():
    components, index = ordinary(16), torch.tensor([3, 3, 7])
    first = sample(components, index, torch.Generator().manual_seed(1))
    again = sample(components, index, torch.Generator().manual_seed(1))
    assert first.equal(again) and not first[0].equal(first[1])


def test_no_component_comes_twice_before_all_came_once():
    training = training_images(16, n=1500)
    assert len(training.images) == 1500 + sum(cause != "" for cause in drawings().causes)
    novel = training.images[-1500:].flatten(1)
    distance = torch.cdist(novel, novel) + torch.eye(1500) * 9
    assert distance.min() > 0.05
