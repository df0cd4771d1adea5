"""What must stay absent: imports, machine paths, long files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("hydra", "lightning", "wandb", "torchmetrics", "diffusers", "transformers", "pandas", "matplotlib")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".html", ".css", ".js", ".json", ".txt", ".cfg", ".sh", ""}


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def project_files() -> list[Path]:
    folders = ("amg", "benchmarks", "conf", "docs", "experiments", "tests", ".ci", ".github")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files = [path for path in [*ROOT.glob("*"), *inside] if path.is_file() and path.suffix in TEXT]
    return [path for path in files if "__pycache__" not in path.parts and path.name != ".git"]


def test_import_contracts_hold():
    done = python("from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "statement, absent",
    [
        ("import amg", (*HEAVY, "torch")),
        ("from amg import AntiMemorizationGuidance, TrainingBank, sample", HEAVY),
        ("from amg.similarity import NormalizedL2, PCASimilarity; import amg.thresholds, amg.calibration", HEAVY),
    ],
)
def test_importing_the_library_stays_light(statement, absent):
    done = python(f"{statement}\nimport sys\nprint(*sorted({set(absent)!r} & sys.modules.keys()))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_library_never_imports_what_belongs_to_experiments():
    found = []
    files = sorted((ROOT / "amg").rglob("*.py"))
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in names
                if name.split(".")[0] in ("hydra", "omegaconf", "lightning", "wandb", "experiments")
            ]
    assert len(files) > 30 and found == []


def test_every_folder_of_the_library_is_a_package():
    """A namespace package would be missed by import-linter."""
    folders = {path.parent for path in (ROOT / "amg").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_no_machine_paths_in_the_text():
    machine = re.compile(r"/(?:work|root|home/\w+|Users/\w+)/|\.\./shared")
    files = project_files()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), 1)
        if machine.search(line)
    ]
    assert len(files) > 100 and found == []


def test_no_file_holds_two_ideas():
    files = [path for folder in ("amg", "experiments") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf8").splitlines()) for path in files}
    assert len(files) > 50 and {name: count for name, count in lines.items() if count > 300} == {}
