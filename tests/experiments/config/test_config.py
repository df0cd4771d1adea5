"""Every yaml composes and binds."""

import json
import os
from pathlib import Path

import pytest
from composed import composed

from amg.guidance.presets import CURVES, PRESETS
from experiments.cli.main import CONF, compose_config
from experiments.cli.sweep import rows_of
from experiments.config.bind import COMPONENTS, check
from experiments.config.schema import NotApplicable, RunConfig

FILES = sorted(file.relative_to(CONF).with_suffix("") for file in CONF.rglob("*.yaml"))
PAIRED = {  # similarities for other models than the closed-form world, and what only one task takes
    "similarity/sscd": ["model=sd"],
    "similarity/clip_sscd": ["model=sd"],
    "similarity/lab_two_stage": ["model=lab_sd"],
    "similarity/sscd_large": ["model=sd", "++similarity.name=sscd"],
    "similarity/lab_guide": ["model=lab_sd"],
    "similarity/correlation": ["model=lab_sd"],
    "similarity/lab_judge": ["model=lab_sd"],
    "similarity/pdq": ["threshold=constant", "++threshold.value=0.7"],
} | {f"detector/{file.stem}": ["task=detect"] for file in (CONF / "detector").glob("*.yaml")}
MODELS = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))


def choosing(file: Path) -> list[str]:
    """What chooses a yaml on the command line."""
    if str(file) == "config":
        return []
    depth = 2 if file.parts[0] == "hydra" else 1
    return [*PAIRED.get(str(file), []), f"{'/'.join(file.parts[:depth])}={'/'.join(file.parts[depth:])}"]


def test_no_yaml_is_left_out():
    groups = {file.parts[0] for file in FILES if len(file.parts) > 1}
    assert groups == {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    assert set(COMPONENTS) - {"judge"} <= groups
    assert len(FILES) == sum(name.endswith(".yaml") for _, _, names in os.walk(CONF) for name in names)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_yaml_composes_into_a_run_whose_parts_bind_to_their_signatures(file):
    run = check(composed(*choosing(file)))
    assert isinstance(run, RunConfig)
    for component in COMPONENTS:
        assert getattr(run, component)["_target_"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("strength", ["main", "strong"])
def test_every_model_has_the_constants_of_the_full_guidance_at_both_strengths(model, strength):
    run = check(composed(f"model={model}", "guidance=full", f"strength={strength}"))
    assert run.model["name"] == model and run.guidance["c3"] > 0


def test_every_row_of_every_experiment_composes_and_binds():
    visited = 0
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        for guidances, *keys in rows_of(compose_config([f"experiment={file.stem}"]), []):
            for row in guidances.removeprefix("guidance=").split(","):
                check(compose_config([f"experiment={file.stem}", f"guidance={row}", *keys]))
                visited += 1
    assert visited >= 25


@pytest.mark.parametrize(
    ("arguments", "name", "n_samples"),
    [
        (["experiment=table2"], "table2", 512),
        (["experiment=table2", "model=iddpm_cifar10", "guidance=full"], "table2-iddpm_cifar10", 10000),
        (["experiment=table3", "model=iddpm_cifar10_cond", "guidance=strong"], "table3-iddpm_cifar10_cond", 10000),
        (["experiment=table5", "model=ddpm_cifar10", "guidance=sim_parabolic"], "table5-ddpm_cifar10", 10000),
        (["experiment=table5", "model=lab_ddpm", "guidance=sim_constant"], "table5-lab_ddpm", 512),
        (["experiment=table1", "model=sd", "guidance=full"], "table1-sd", 500),  # each of the prompts once
        (["experiment=figure4", "model=sd"], "figure4-sd", 500),
        (["experiment=figure4", "model=lab_sd"], "figure4-lab_sd", 64),
        (["experiment=rivals"], "rivals", 128),
        (["experiment=rivals", "model=closed_form"], "rivals-closed_form", 128),
        (["experiment=table2", "model=iddpm_cifar10", "n_samples=7", "name=mine"], "mine", 7),
    ],
)
def test_a_table_of_another_model_has_its_own_size_and_folder_unless_the_user_says_one(arguments, name, n_samples):
    run = check(compose_config(arguments))
    assert (run.name, run.n_samples) == (name, n_samples)


@pytest.mark.parametrize("strength", ["main", "strong"])
@pytest.mark.parametrize("model", ["closed_form", "lab_ddpm", "ddpm_cifar10", "iddpm_cifar10"])
def test_the_rows_of_table_5_differ_in_the_threshold_alone(model, strength):
    table = ["experiment=table5", f"model={model}", f"strength={strength}"]
    constant, parabolic = (
        check(compose_config([*table, f"guidance=sim_{name}"])).guidance for name in ("constant", "parabolic")
    )
    assert {key for key in constant if constant[key] != parabolic[key]} == {"name", "threshold"} and constant["c3"] > 0
    level, (start, end) = constant["threshold"]["value"], (parabolic["threshold"][key] for key in ("start", "end"))
    drawn = model in ("closed_form", "lab_ddpm")
    copy = {"main": -0.93, "strong": -1.14} if drawn else {"main": -1.4, "strong": -1.6}
    assert start == level == copy[strength] and end > start


@pytest.mark.parametrize("model", ["closed_form", "lab_ddpm", "ddpm_cifar10", "iddpm_cifar10", "iddpm_cifar10_cond"])
@pytest.mark.parametrize("table", ["table2", "table3", "table5"])
def test_no_two_rows_of_a_table_draw_the_same_pictures(table, model):
    ((rows,),) = rows_of(compose_config([f"experiment={table}"]), [])
    drawn = {}
    for row in rows.removeprefix("guidance=").split(","):
        if (table, model, row) == ("table5", "lab_ddpm", "sim_calibrated"):
            continue  # its AMG (Main) has the calibrated λ_t too
        try:
            run = check(compose_config([f"experiment={table}", f"guidance={row}", f"model={model}"]))
        except NotApplicable:
            continue
        chosen = {"threshold": run.threshold} | run.guidance
        own = (
            str({key: chosen[key] for key in sorted(chosen) if key not in ("name", "terms")})
            if "terms" in chosen
            else row
        )
        assert own not in drawn, f"{row} and {drawn[own]} are the same"
        drawn[own] = row
    assert len(drawn) >= 3


def test_a_calibrated_threshold_is_the_models_own_and_not_applicable_where_none_was_learned():
    run = check(compose_config(["experiment=table5", "guidance=sim_calibrated", "similarity=pca"]))
    curve = run.guidance["threshold"]
    assert (curve["times"], curve["values"]) == learned("closed_form-pca")
    for model in ("iddpm_cifar10", "ddpm_cifar10"):
        with pytest.raises(NotApplicable, match=f"no curve was learned for model={model} with similarity=nl2"):
            check(compose_config(["experiment=table5", "guidance=sim_calibrated", f"model={model}"]))


def learned(name: str) -> tuple[list[float], list[float]]:
    curve = json.loads((CURVES / f"{name}.json").read_text())
    return curve["times"], curve["values"]


def test_constants_of_the_table_are_written_into_a_run_and_given_ones_win():
    run = check(compose_config(["guidance=full", "++guidance.c3=7", "strength=strong"]))
    constants = PRESETS["closed_form", "pca"].strong
    assert run.guidance["c1"] == constants.c1 and run.guidance["c3"] == 7 and "preset" not in run.guidance
    assert run.threshold == {"_target_": "amg.thresholds.Constant", "value": constants.threshold.value}
    assert (run.similarity["copy"], run.judge["copy"]) == (0.97, -0.93)


def test_a_chain_takes_the_constants_of_its_amg():
    run = check(compose_config(["model=lab_sd", "guidance=gni_full"]))
    (full,) = [node for node in run.guidance["guidances"] if node["name"] == "full"]
    assert full["c3"] == PRESETS["lab_sd", "correlation"].main.c3


def test_the_rows_of_each_table_of_an_experiment_are_swept_with_its_keys_and_what_is_typed_wins():
    demo = compose_config(["experiment=demo"])
    text = ["guidance=none,spe,dup,sim,full,oracle"]
    unconditional, labs = ["conditioning=none", "s0=1.0"], [["model=lab_sd"], ["model=lab_flow"]]
    networks = [["guidance=none,full", *lab] for lab in labs]
    assert rows_of(demo, []) == [["guidance=none,full,oracle", *unconditional], text, *networks]
    assert rows_of(demo, ["guidance=dup"]) == [unconditional, [], *labs]
    assert rows_of(demo, ["s0=2", "model=lab_sd"]) == [["guidance=none,full,oracle", "conditioning=none"], text]
    table = compose_config(["experiment=table1"])
    assert "ablation" not in rows_of(table, [])[0][0]  # the paper's alone


def test_a_leading_tilde_is_the_home_folder_in_every_key_that_holds_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    places = ["data.path='~/a'", "output_dir='~/b'", "metrics.reference='~/c'", "data.cache='~/d'", "prompt='~/e'"]
    run = check(compose_config(["data=folder", *(f"++{place}" for place in places)]), bind=False)
    assert (run.data["path"], run.output_dir) == ("/me/a", "/me/b")
    assert (run.metrics.reference, run.data["cache"], run.prompt) == ("/me/c", "/me/d", "~/e")


def test_the_strong_guidance_has_its_own_threshold():
    strong, chosen = (check(composed(*keys)) for keys in (["guidance=strong"], ["guidance=full", "strength=strong"]))
    assert strong.threshold == chosen.threshold != check(composed("guidance=full")).threshold
    assert strong.guidance | {"name": "full"} == chosen.guidance
