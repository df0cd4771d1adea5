"""What is known of a model: the truth of the closed form, and the little that is known of any other."""

import pytest
import torch

from amg.bank import TrainingBank
from amg.models.base import Model
from amg.worlds.closed_form import ClosedForm
from amg.worlds.drawings import drawings
from amg.worlds.world import World, of


@pytest.fixture(scope="module")
def world():
    return of(ClosedForm(size=16))


def test_the_truth_knows_copies_their_names_and_whether_they_were_asked_for(world):
    images, component = world.model.sample(24, world.prompts[0], seed=3)
    copies = component < world.model.points
    assert copies.any() and not copies.all()
    assert torch.equal(world.truth.copies(images), copies)
    law, data = world.model, drawings()
    named = [(law.things[k], data.sets[law.drawing[k]]) for k in component[:3].tolist()]
    assert world.truth.component(images)[:3] == [f"{name} ({maker})" for name, maker in named]
    assert world.truth.answers([world.prompts[0]] * 24, images).all()
    other = next(p for p in world.ordinary() if not world.model.asked_for(p)[component].any())
    assert not world.truth.answers([other] * 24, images).any()
    assert (world.truth.bits([world.prompts[0]] * 24, images) > 1).eq(copies).all()


def test_default_prompts_are_half_ordinary(world):
    assert len(world.ordinary()) == len(world.prompts) / 2
    assert world.truth.rate() == pytest.approx(0.03)


def test_another_bank_replaces_the_worlds_own(world):
    bank = TrainingBank.from_tensors(torch.zeros(1, 3, 16, 16))
    other = of(world.model, bank)
    assert other.bank is bank and other.prompts == world.prompts


def test_of_a_model_without_a_world_only_its_labels_are_known():
    class Labelled(Model):
        classes = ("cat", "dog")

    world = of(Labelled())
    assert (world.classes, world.prompts, world.bank, world.truth) == (("cat", "dog"), (), None, None)
    assert world.cause("a prompt that nobody knows") == ""


def test_a_model_without_the_defaults_is_refused():
    with pytest.raises(ValueError, match="object must be a subclass of amg.models.base.Model"):
        of(object())


def test_a_world_is_a_value(world):
    with pytest.raises(AttributeError):
        world.prompts = ()
    assert isinstance(world, World)
