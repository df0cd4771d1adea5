"""Notebooks with their outputs, each written from the script of the same name.

python -m experiments.cli.notebooks notebooks/*.py
"""

import re
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode


def executed(script: Path) -> NotebookNode:
    """Runs the cells of a script and returns them with what they print and draw; warnings and bars are left out."""
    notebook = NotebookClient(jupytext.read(script), record_timing=False, timeout=None).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = str(i)
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _plain(output: NotebookNode) -> NotebookNode:
    """Removes the codes of a terminal, and its bars."""
    if "text" in output:
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.text).splitlines(keepends=True)
        output.text = "".join(line for line in lines if "━" not in line).lstrip("\n")
    return output


if __name__ == "__main__":
    for name in sys.argv[1:]:
        jupytext.write(executed(Path(name)), Path(name).with_suffix(".ipynb"))
