"""Fixtures of the lab's recipes: the training data, and a fixed seed for each test."""

import pytest
import torch

from experiments.recipes.lab import data as lab_data


@pytest.fixture(scope="module")
def data():
    return lab_data.load()


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
