"""From the command line to a checked configuration, a single run or a sweep. Imports nothing heavy."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from pathlib import Path

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cli.process import Terminated, process
from experiments.cli.quoting import quote
from experiments.cli.sweep import one_device
from experiments.config.bind import COMPONENTS, check
from experiments.config.messages import SEVERAL, explain
from experiments.config.schema import ConfigError
from experiments.tables.seeds import refuse_overlap

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
MULTIRUN = ("-m", "--multirun")
ELSEWHERE = ("-cn", "--config-name", "-cp", "--config-path", "-r", "--run", "--experimental-rerun")
"""Flags of Hydra that would run something else than `main` does."""
DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


@process()
def main(argv: list[str]) -> int:
    """Runs what the arguments ask for; returns the exit code, as the page of `--help` lists them."""
    command = shlex.join(["python", "run.py", *argv])
    try:
        arguments = own_folder(argv) or ["experiment=demo"]
        arguments = [reach(quote(argument, _is_sweep(arguments))) for argument in arguments]
        if {"--help", "-h"} & set(argv):
            from experiments.cli.help import page

            print(page(folders(arguments)))
            return DONE
        flags = [argument for argument in arguments if argument.startswith("-") and argument not in MULTIRUN]
        if refused := [flag for flag in flags if flag.split("=")[0] in ELSEWHERE]:
            raise ConfigError([f"{refused[0]}: not taken here; put yamls of your own into a folder and add -cd FOLDER"])
        if flags:
            return _hydra(arguments)  # --cfg, --info, --shell-completion …
        if _is_sweep(arguments):
            return _sweep([argument for argument in arguments if argument not in MULTIRUN], command)
        cfg = compose_config(arguments)
        from experiments.tasks.task import run

        run(cfg, command=command)
        return DONE
    except ConfigError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print("stopped; the same command continues from here", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def reach(argument: str) -> str:
    """`model.rank=8` to `++model.rank=8`: a yaml states only what differs, so Hydra cannot know every component key.

    They are bound to the component's signature later.
    """
    return f"++{argument}" if re.match(rf"({'|'.join((*COMPONENTS, *SEVERAL))})\.", argument) else argument


def own_folder(arguments: list[str]) -> list[str]:
    """`-cd FOLDER`, the user's own yamls beside `conf/`, as the override that says the same to Hydra everywhere.

    Raises:
        ConfigError: where there is no such folder, or a yaml in it cannot be read.
    """
    left, given = [], iter(arguments)
    for argument in given:
        flag, _, value = argument.partition("=")
        if flag not in ("-cd", "--config-dir"):
            left.append(argument)
            continue
        folder = value or next(given, "")
        if not folder or not Path(folder).is_dir():
            raise ConfigError([f"{flag} {folder}: no such folder; give one that holds yamls as conf/ does"])
        for file in Path(folder).rglob("*.yaml"):
            try:
                OmegaConf.load(file)
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError([f"{file}: no YAML in UTF-8: {' '.join(str(error).split())}"]) from None
        path = str(Path(folder).absolute()).replace("\\", "\\\\").replace("'", "\\'")
        left.append(f"hydra.searchpath=['file://{path}']")
    return left


def folders(arguments: list[str]) -> list[Path]:
    """`conf/`, and the folder of `-cd`."""
    own = next((argument for argument in arguments if argument.startswith("hydra.searchpath=")), None)
    if own is None:
        return [CONF]
    paths = OverridesParser.create().parse_override(own).value()
    return [CONF, *(Path(str(path).removeprefix("file://")) for path in paths)]


def compose_config(arguments: list[str], whole: bool = True) -> DictConfig:
    """Composes `conf/` with overrides.

    Args:
        whole: after a mistake that Hydra found, look for more in the rest of the configuration too.

    Raises:
        ConfigError: with one line per mistake that Hydra found.
    """
    GlobalHydra.instance().clear()
    lines: list[str] = []
    left = list(arguments)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        while True:
            try:
                cfg = compose("config", overrides=left)
                break
            except (HydraException, OmegaConfBaseException) as error:
                lines.append(explain(error, folders(arguments)))
                culprit = _culprit(lines[-1], left)
                if culprit is None:
                    raise ConfigError(lines) from None
                left.remove(culprit)  # and look for more mistakes
    if lines:
        raise ConfigError(lines + (_told_anyway(cfg) if whole else []))
    return cfg


def _culprit(line: str, arguments: list[str]) -> str | None:
    """The argument that a complaint is about."""
    start = re.split(r"[=:]", line, maxsplit=1)[0]
    return next((argument for argument in arguments if argument.lstrip("+~").split("=")[0] == start), None)


def _told_anyway(cfg: DictConfig) -> list[str]:
    """Run-level mistakes in the rest of the configuration, so that all are told at once."""
    try:
        check(cfg, bind=False)
    except ConfigError as error:
        return error.lines
    return []


def _is_sweep(arguments: list[str]) -> bool:
    """Whether `-m` was given, or a chosen experiment brings a grid of its own."""
    multirun = bool(set(MULTIRUN) & set(arguments))
    for argument in arguments:
        if argument.startswith("experiment="):
            name = argument.split("=", 1)[1]
            if "," in name:
                raise ConfigError([f"experiment={name}: one experiment at a time; each brings its own grid"])
            for file in (folder / "experiment" / f"{name}.yaml" for folder in folders(arguments)):
                if file.is_file():
                    multirun |= OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") is not None
    return multirun


def _sweep(arguments: list[str], command: str) -> int:
    """A Hydra multirun; the jobs leave their results in the sweep's folder, from which table and report are made.

    Args:
        command: what was typed.
    """
    _check_choices(arguments)
    folder = Path("runs") / ".hydra" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    try:
        code = _hydra(["-m", *arguments, f"hydra.sweep.dir={folder}"])
    except SystemExit as error:  # a launcher lost a job's process
        code = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):  # a task that could not go on says why
            print(error.code, file=sys.stderr)
    from experiments.cli.sweep import finish

    return finish(folder, command) or code


def _check_choices(arguments: list[str]) -> None:
    """Composes with each value of each swept key, so that a typo is told before the first job starts.

    Raises:
        ConfigError: with one line per mistake.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        raise ConfigError([explain(error, folders(arguments))]) from None
    keys = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
    if "task" in keys:
        raise ConfigError(["task: a sweep does one task; give each a command of its own"])
    fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
    swept = [
        o for o in overrides if isinstance(o.value(), ChoiceSweep)
    ]  # a glob finds only what is there; ranges are numbers
    lines: list[str] = []
    for one in [[], *([f"{o.get_key_element()}={value}"] for o in swept for value in o.sweep_string_iterator())]:
        try:
            cfg = compose_config([*fixed, *one], whole=False)
            one_device(cfg)
        except ConfigError as error:
            lines += [line for line in error.lines if line not in lines]
    if lines:
        raise ConfigError(lines)
    if "seed" in keys and "n_samples" not in keys and cfg.n_samples is not None:
        starts = [value for value in keys["seed"].sweep_string_iterator() if value.isdecimal()]
        refuse_overlap([(f"seed={value}", None, range(int(value), int(value) + cfg.n_samples)) for value in starts])


def _hydra(arguments: list[str]) -> int:
    """Hands over to Hydra's own command line."""
    sys.argv = [str(ROOT / "run.py"), *arguments]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        if str(ROOT) not in sys.path:  # a launcher's process knows where Python is, not where this project is
            sys.path.insert(0, str(ROOT))
        from experiments.cli.sweep import one_job

        one_job(cfg)

    job()
    return DONE
