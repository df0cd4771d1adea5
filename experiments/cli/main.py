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
from experiments.cli.sweep import finish, one_device, rows_of
from experiments.config.bind import COMPONENTS, check
from experiments.config.messages import SEVERAL, explain
from experiments.config.schema import ConfigError
from experiments.tables.names import refuse_overlap

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
        experiment = _experiment(arguments)
        sweep = bool(set(MULTIRUN) & set(arguments) or experiment.get("table") or _own_grid(experiment))
        arguments = [reach(quote(argument, sweep)) for argument in arguments]
        if {"--help", "-h"} & set(argv):
            from experiments.cli.help import page

            print(page(folders(arguments)))
            return DONE
        flags = [argument for argument in arguments if argument.startswith("-") and argument not in MULTIRUN]
        if refused := [flag for flag in flags if flag.split("=")[0] in ELSEWHERE]:
            raise ConfigError([f"{refused[0]}: not taken here; put yamls of your own into a folder and add -cd FOLDER"])
        if flags:
            return _hydra(arguments)  # --cfg, --info, --shell-completion …
        if sweep:
            return _sweep([argument for argument in arguments if argument not in MULTIRUN], experiment, command)
        cfg = compose_config(arguments)
        from experiments.tasks.run import run

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


def compose_config(arguments: list[str], whole: bool = True, with_hydra: bool = False) -> DictConfig:
    """Composes `conf/` with overrides.

    Args:
        whole: after a mistake that Hydra found, look for more in the rest of the configuration too.
        with_hydra: returns Hydra's own configuration too.

    Raises:
        ConfigError: with one line per mistake that Hydra found.
    """
    GlobalHydra.instance().clear()
    lines: list[str] = []
    left = list(arguments)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        while True:
            try:
                cfg = compose("config", overrides=left, return_hydra_config=with_hydra)
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


def _experiment(arguments: list[str]) -> DictConfig:
    """The configuration of the experiment that is chosen, Hydra's own included; empty without one."""
    chosen = [word for word in arguments if word.startswith(("experiment=", "hydra.searchpath="))]
    if several := [word for word in chosen if word.startswith("experiment=") and "," in word]:
        raise ConfigError([f"{several[0]}: one experiment at a time; each brings its own rows"])
    try:
        return compose_config(chosen, with_hydra=True) if "experiment=" in " ".join(chosen) else OmegaConf.create()
    except ConfigError:  # told together with all else that is wrong
        return OmegaConf.create()


def _own_grid(experiment: DictConfig) -> bool:
    return bool(OmegaConf.select(experiment, "hydra.sweeper.params"))


def _sweep(arguments: list[str], experiment: DictConfig, command: str) -> int:
    """Hydra multiruns; the jobs leave their results in the sweep's folder, from which table and report are made.

    Args:
        experiment: the rows of its tables are swept, unless it brings a grid of its own.
        command: what was typed.
    """
    grids = [arguments]
    if not _own_grid(experiment):
        grids = [[*arguments, *own] for own in rows_of(experiment, arguments)] or grids
    for grid in grids:
        _check_choices(grid)
    folder = Path("runs") / ".hydra" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    code = DONE
    for i, grid in enumerate(grids):
        try:
            _hydra(["-m", *grid, f"hydra.sweep.dir={folder / str(i)}"])
        except SystemExit as error:  # a launcher lost a job's process
            code = error.code if isinstance(error.code, int) else 1
            if isinstance(error.code, str):  # a task that could not go on says why
                print(error.code, file=sys.stderr)
                break
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
