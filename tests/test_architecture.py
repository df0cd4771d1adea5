"""What ARCHITECTURE.md says of the code as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("hydra", "lightning", "wandb", "torchmetrics", "diffusers", "transformers", "pandas", "matplotlib")
CODE = [ROOT / "run.py", *(p for folder in ("amg", "experiments", "benchmarks") for p in (ROOT / folder).rglob("*.py"))]
ALONE = {  # besides the standard library
    "amg/guidance/terms.py": {"torch", "amg"},  # of the library only what the import contract allows
    "amg/thresholds.py": {"torch"},
    "amg/step.py": {"torch", "amg"},
    "amg/schedule.py": {"torch", "amg"},
    "amg/tensors.py": {"torch"},
    "amg/bank/exact.py": {"torch", "amg"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_imports_point_down():
    # in a process of its own: import-linter disables every logger that exists, and other tests read logs
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('pyproject.toml', no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_library_imports_neither_the_experiments_nor_their_tools():
    for path in (ROOT / "amg").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"experiments", "run", "hydra", "omegaconf", "lightning", "wandb", "pydantic"}, path


def test_every_folder_is_a_package():
    """A namespace package would be missed by import-linter."""
    folders = {path.parent for top in ("amg", "experiments") for path in (ROOT / top).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", ALONE)
def test_the_arithmetic_imports_torch_alone(name):
    tops = {module.split(".")[0] for module in imports(ROOT / name)}
    assert tops - set(sys.stdlib_module_names) - {"__future__"} <= ALONE[name]


def test_import_amg_loads_nothing_heavy_not_even_torch():
    assert not loaded_by("import amg") & {*HEAVY, "torch", "numpy", "pyarrow"}


def test_the_public_names_load_torch_and_nothing_heavier():
    names = "from amg import AntiMemorizationGuidance, TrainingBank, guard, sample"
    loaded = loaded_by(f"{names}\nimport amg.similarity, amg.thresholds, amg.sampling.ordinary")
    assert "torch" in loaded and not loaded & set(HEAVY)


def test_run_py_loads_no_torch():
    assert not loaded_by("import run") & {"torch", "numpy", "diffusers", "lightning", "wandb", "pandas", "matplotlib"}


def test_public_names_are_listed_and_unknown_ones_refused():
    import amg

    assert set(amg.__all__) <= set(dir(amg))
    assert all(callable(getattr(amg, name)) for name in amg.__all__)
    with pytest.raises(AttributeError, match="module 'amg' has no attribute 'smaple'"):
        amg.smaple  # noqa: B018


def test_no_folder_holds_more_than_about_14_modules():
    folders = [path.parent for folder in ("amg", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert {str(folder): n for folder in set(folders) if (n := folders.count(folder)) > 17} == {}


def test_tracked_text_holds_no_path_of_a_machine():
    machine = re.compile(r"(?<![\w.~}-])/(?:root|work|home|Users)/[A-Za-z]|\.\./shared")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # pictures, weights
            continue
        found += [f"{path.name}: {line.strip()[:80]}" for line in text.splitlines() if machine.search(line)]
    assert found == []
