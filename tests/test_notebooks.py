"""The notebooks run as they are, and stand beside their scripts with their outputs."""

import re
import runpy
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_guidance_makes_fewer_copies_than_plain_sampling(notebook):
    copies = runpy.run_path(str(notebook))["copies"]
    assert len(copies) == 2 and sum(copies["without"]) > 0
    assert sum(copies.popitem()[1]) < sum(copies["without"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_ipynb_is_its_script_with_outputs(notebook):
    """make notebooks writes it anew."""
    written = notebook.with_suffix(".ipynb")
    cells = jupytext.read(written).cells
    assert [cell.source for cell in cells] == [cell.source for cell in jupytext.read(notebook).cells]
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and "\\u001b" not in written.read_text(encoding="utf8")
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    text = written.read_text(encoding="utf8")
    assert len(text) < 2**20 and not re.search(r"/(home|root|work|tmp|Users)/", text)
