import sys

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # small tensors: threads cost more than they give
settings.register_profile("amg", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("amg")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """No test reads or writes the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch):
    """No command in a test's own process fetches what is missing."""
    monkeypatch.setattr("experiments.tasks.run.fetch", lambda config: None)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command line below tmp_path; returns exit code, stdout and stderr."""
    from experiments.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])  # Hydra reads and a sweep sets it
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        code = main([*arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
