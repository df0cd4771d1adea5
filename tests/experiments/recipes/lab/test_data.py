"""Contracts of the lab's training data and distortions."""

import pytest
import torch

from experiments.recipes.lab import data as lab_data
from experiments.recipes.lab.views import distort


def test_the_requested_share_of_a_batch_is_planted(data):
    images = torch.cat([data.mixed(100, share=0.2) for _ in range(40)])
    planted = torch.cdist(images.flatten(1), data.planted.flatten(1)).amin(1) < 0.5  # cdist rounds
    assert planted.float().mean().item() == pytest.approx(0.2, abs=0.026)  # four standard deviations of 4,000 draws


def test_an_ordinary_image_never_looks_the_same_twice(data):
    index = torch.arange(16)
    first, second = data.ordinary(index), data.ordinary(index)
    assert (first - second).flatten(1).abs().amax(1).min() > 0.05
    assert first.min() >= -1 and first.max() <= 1


def test_planted_drawings_never_occur_in_ordinary_images(data):
    from amg.worlds.drawings import drawings

    planted = {i for i, cause in enumerate(drawings().causes) if cause}
    assert len(planted) == len(data.planted) and not planted & set(data.components.drawing.tolist())


def test_every_planted_thing_is_also_drawn_otherwise(data):
    assert all(len(data.siblings(thing)) >= 8 for thing in data.planted_things)


def test_distorted_views_stay_closer_to_their_image_than_to_most_others(data):
    images = data.ordinary(data.random(100))
    distance = torch.cdist(distort(images).flatten(1), images.flatten(1))
    rank = (distance < distance.diagonal()[:, None]).sum(1).float()
    assert rank.median() <= 3


def test_copies_are_recognised_through_grain_and_new_colours_are_none(data):
    assert lab_data.copies_of(data.planted + 0.1 * torch.randn_like(data.planted), data.planted).all()
    assert lab_data.copies_of(data.ordinary(data.random(500)), data.planted).float().mean() < 0.01
