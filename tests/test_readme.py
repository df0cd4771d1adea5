"""What the pages tell to type works: commands compose and run small, Python compiles and names what there is."""

import ast
import importlib
import os
import re
import shlex
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf
from synthetic_runs import save

from amg.worlds.drawings import training_images
from experiments.cli.main import compose_config, folders, main, own_folder, quote, reach
from experiments.config.bind import check

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.py"))]
SMALL = ["n_samples=2", "sampler.steps=2", "metrics.extractor=none", "metrics.scorer=none", "trainer=cpu"]
ADDING = ROOT / "docs" / "adding.md"


def blocks(page, language):
    """Fenced blocks of a language; of a notebook, those in its Markdown."""
    text = page.read_text()
    if page.suffix == ".py":
        text = re.sub(r"^# ?", "", text, flags=re.M)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def words_of(line):
    """The arguments of `python run.py …` in a line; None where it is another command. A … stands for more keys."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):  # environment
        words = words[1:]
    return [word for word in words[2:] if word != "…"] if words[:2] == ["python", "run.py"] else None


COMMANDS = [
    pytest.param(page, words, id=f"{page.stem}: {' '.join(words)}"[:110])
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
    if (words := words_of(line)) is not None and "--help" not in words
]


@pytest.fixture
def added(tmp_path, monkeypatch):
    """docs/adding.md carried out below tmp_path: its classes are found in `amg`, its yamls by `-cd`."""
    for language in ("python", "yaml"):
        for block in blocks(ADDING, language):
            file = tmp_path / "added" / block.splitlines()[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.split("\n", 1)[1])
    for folder in (tmp_path / "added" / "amg").iterdir():
        package = importlib.import_module(f"amg.{folder.name}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red bus\nsnowman\n")  # the reader's own
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path / "added" / "conf"
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def prepared(words, conf, tmp_path):
    """A page's arguments with the reader's own folders and files in place."""
    own = {"my_yamls": conf}
    if "my_yamls" in words:
        (conf / "guidance" / "mine.yaml").write_text((ROOT / "conf" / "guidance" / "sim.yaml").read_text())
    words = [str(own.get(word, word)) for word in words if word not in ("-m", "--multirun")]
    return words if "-cd" in words else ["-cd", str(conf), *words]


def test_the_pages_have_commands():
    assert len(COMMANDS) >= 35
    assert {param.values[0].stem for param in COMMANDS} >= {"README", "usage", "adding", "wandb", "reproduce_a_table"}


@pytest.mark.parametrize("page, words", COMMANDS)
def test_every_command_composes_and_its_parts_take_its_keys(page, words, added, tmp_path):
    arguments = own_folder([reach(quote(word)) for word in prepared(words, added, tmp_path)])
    for one in single_runs(arguments):
        cfg = compose_config(one)
        missing = {key: "given" for key in OmegaConf.missing_keys(cfg)}
        run = check(compose_config([*one, *(f"++{key}={value}" for key, value in missing.items())]))
        assert run.model["_target_"]


def single_runs(arguments):
    """A sweep's values of each key, one at a time; a launcher and its keys are Hydra's own."""
    arguments = [word for word in arguments if not word.startswith(("hydra/launcher", "hydra.launcher"))]
    parsed = OverridesParser.create().parse_overrides(arguments)
    plain = [one.input_line for one in parsed if not one.is_sweep_override()]
    swept = [one for one in parsed if one.is_sweep_override()]
    values = []
    for one in swept:
        if isinstance(one.value(), Glob):
            files = (file for conf in folders(arguments) for file in (conf / one.key_or_group).glob("*.yaml"))
            names = one.value().filter([file.stem for file in files])
        else:
            names = list(one.sweep_string_iterator())
        values += [f"{one.get_key_element()}={name}" for name in names]
    return [[*plain, value] for value in values] or [plain]


RUN_HERE = [
    'guidance=early_relief guidance.until=0.7 prompt="bus"',
    "similarity=l2 guidance=sim guidance.c3=10",
    "model=gaussian guidance=none",
    "experiment=relief",
]


@pytest.mark.slow
@pytest.mark.parametrize("beginning", RUN_HERE)
def test_what_is_added_runs_as_it_is_told(beginning, added, tmp_path):
    wanted = shlex.split(beginning)
    words = next(param.values[1] for param in COMMANDS if param.values[1][: len(wanted)] == wanted)
    keep = ["-m"] if "-m" in words else []
    assert main([*keep, *prepared(words, added, tmp_path), *SMALL]) == 0
    assert list(tmp_path.glob("runs/*/*/manifest.json")) and list(tmp_path.glob("runs/**/report.html"))


NEEDS_MORE = {
    "model=sd",  # weights that are not there
    *("task=download", "task=download_sscd"),  # a network
    *("hydra/launcher=parallel", "hydra/launcher=slurm"),  # processes of their own: test_sweeps has them
}
ALSO = ["experiment=table3", "experiment=table5", "experiment=figure4"]
"""What the README's comments name beside a command."""


def readme_commands():
    """Every command of the README that needs nothing of the reader, in the page's order."""
    found = [param.values[1] for param in COMMANDS if param.values[0].stem in ("README", "usage")]
    found = [words for i, words in enumerate(found) if not NEEDS_MORE & set(words) and words not in found[:i]]
    place = found.index(["task=overview"])
    return [*found[:place], *([word] for word in ALSO), *found[place:]]


@pytest.fixture
def reader(added, tmp_path):
    """The files that the README's commands name: pictures with captions in a folder, and as Parquet."""
    pictures = training_images(32)
    (tmp_path / "train").mkdir()
    (tmp_path / "outputs").mkdir()
    rows = []
    for i in range(60):
        save(pictures.images[i], tmp_path / "train" / f"{i}.png")
        save(torch.rand_like(pictures.images[i]) * 2 - 1, tmp_path / "outputs" / f"{i}.png")  # noise copies nothing
        (tmp_path / "train" / f"{i}.txt").write_text(pictures.captions[i][0])
        rows.append({"bytes": (tmp_path / "train" / f"{i}.png").read_bytes(), "path": None})
    texts = [captions[0] for captions in pictures.captions[:60]]
    pq.write_table(pa.table({"image": rows, "text": texts}), tmp_path / "train.parquet")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_readme_that_can_run_here_runs(added, reader, monkeypatch):
    monkeypatch.setenv("AMG_CACHE", str(reader / "cache"))
    commands = readme_commands()
    told = {word.partition("=")[2] for words in commands for word in words if word.startswith(("task=", "experiment="))}
    assert told >= {"detect", "bank", "dedupe", "collect", "overview", "rivals", "figure3", "figure4"}
    assert told >= {f"table{i}" for i in range(1, 6)} and len(commands) >= 25
    for words in commands:
        keep = ["-m"] if "-m" in words else []
        detects = "task=detect" in words  # anisotropy looks at three places of the schedule
        small = ["n_samples=8", *SMALL[1:], "sampler.steps=4"] if detects else SMALL
        start = time.process_time()
        assert main([*keep, *prepared(words, added, reader), *small]) == 0, " ".join(words)
        print(f"{time.process_time() - start:6.1f} s  {' '.join(words)}")
    page = (reader / "runs" / "tables.html").read_text()
    ran = {f"table{i}" for i in range(1, 6)} | {"figure3", "figure4", "rivals"}
    assert ran <= set(re.findall(r'<section class="experiment" id="(.*?)"', page))
    assert (reader / "runs" / "collected" / "report.html").is_file()
    names = {manifest.parent.name.split("-")[1] for manifest in reader.glob("runs/run/*/manifest.json")}
    assert names >= {"none", "spe", "dup", "sim", "full", "sim_spe", "sim_dup", "spe_dup"}, "glob(*)"


@pytest.mark.slow
def test_the_detector_of_the_page_scores_beside_another(added, tmp_path):
    assert main(["-cd", str(added), "task=detect", "detector=[cosine,magnitude]", "n_samples=8", *SMALL[1:]]) == 0
    (table,) = tmp_path.glob("runs/*/*/table.md")
    assert "cosine" in table.read_text() and "magnitude" in table.read_text()


PYTHON = [(page, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize("page, block", PYTHON, ids=[f"{page.stem}-{i}" for i, (page, _) in enumerate(PYTHON)])
def test_python_compiles_and_names_only_what_amg_has(page, block):
    found = 0
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amg"):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name), f"{page.name}: {alias.name}"
                found += 1
    assert found


def test_links_between_pages_lead_to_files():
    for page in PAGES:
        if page.suffix == ".md":
            for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
                assert os.path.exists(page.parent / target), f"{page.name}: {target}"
