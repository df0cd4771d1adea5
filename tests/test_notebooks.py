"""The notebooks run as they are."""

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_guidance_makes_fewer_copies_than_plain_sampling(notebook):
    copies = runpy.run_path(str(notebook))["copies"]
    assert len(copies) == 2 and sum(copies["without"]) > 0
    assert sum(copies.popitem()[1]) < sum(copies["without"])
