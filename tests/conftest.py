import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # small tensors: threads cost more than they give
settings.register_profile("amg", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("amg")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
