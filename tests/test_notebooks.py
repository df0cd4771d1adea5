"""The notebooks run as they are."""

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_guidance_makes_no_more_copies_than_plain_sampling(notebook):
    found = runpy.run_path(str(notebook))
    assert sum(found["copies"]["with AMG"]) <= sum(found["copies"]["without"])
    assert sum(found["copies"]["without"]) > 0
