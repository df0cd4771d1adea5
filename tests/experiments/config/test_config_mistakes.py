"""Every mistake in a configuration is told, at once, in a line, before anything heavy is loaded."""

import subprocess
import sys

import pytest
from composed import ROOT, composed, mistakes

from experiments.cli.main import CONF, compose_config
from experiments.cli.main import main as run_main
from experiments.config.bind import check, not_applicable

SIZE = "a whole number or [a whole number, a whole number] or null"


def test_all_run_level_mistakes_are_told_at_once():
    lines = mistakes("sed=3", "guidance=ful", "n_samples=-3", "sampler.steps=2000", "sampler.eta=x")
    assert len(lines) == 5
    assert "sed: unknown key; did you mean seed?" in lines
    assert "guidance=ful: no such choice; did you mean full?" in lines
    for key in ("n_samples=-3", "sampler.steps=2000", "sampler.eta='x'"):
        assert any(line.startswith(f"{key}: ") for line in lines), lines


def test_several_detectors_are_chosen_by_name_and_bound_to_their_signatures():
    run = check(compose_config(["task=detect", "detector=[norms,magnitude]", "++detector.magnitude.whole=true"]))
    assert list(run.detector) == ["norms", "magnitude"] and run.detector["magnitude"]["whole"]
    shipped = {file.stem for file in (CONF / "detector").glob("*.yaml")}
    assert set(check(compose_config(["task=detect"])).detector) == shipped
    assert mistakes("task=detect", "detector=[norms,magnitud]") == [
        "detector=magnitud: no such choice; did you mean magnitude?"
    ]
    (line,) = mistakes("task=detect", "++detector.magnitude.hole=true")
    assert line.startswith("detector.magnitude.hole: ") and "did you mean whole?" in line
    (line,) = mistakes("task=detect", "++detector.norms._target_=os.system")
    assert line.startswith("detector.norms._target_=os.system: must begin with")
    assert mistakes("detector=norms") == ["detector: only task=detect takes it"]


def test_all_component_mistakes_are_told_at_once():
    lines = mistakes("++model.siez=16", "guidance=full", "++guidance.c4=1", "++similarity.direction=2", "++trainer.x=1")
    assert any(line.startswith("model.siez: ") and "did you mean size?" in line for line in lines)
    assert any(line.startswith("guidance.c4: ") for line in lines)
    assert any(line.startswith("similarity.direction: ") and "directions?" in line for line in lines)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seed=abc", "integer"),
        ("seed=-1", "greater than or equal to 0"),
        ("n_samples=1.5", "integer"),
        ("n_samples=0", "greater than 0"),
        ("batch_size=0", "greater than 0"),
        ("s0=-1", "greater than or equal to 0"),
        ("conditioning=text", "'none', 'label' or 'prompt'"),
        ("task=generat", "did you mean generate?"),
        ("labels=3", "list"),
        ("name='a/b'", "pattern"),
    ],
)
def test_a_wrong_type_or_range_names_its_key_and_what_is_expected(argument, said):
    (line,) = mistakes(argument)
    assert line.startswith(argument.split("=")[0]) and said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prompt=owl", "labels=[1]"], "prompt and labels: give one of them"),
        (["prompt=owl", "prompts=planted"], "prompt and prompts: give one of them"),
        (["prompt='  '"], "prompt: empty"),
        (["prompt=[]"], "prompt: empty"),
        (["conditioning=none", "prompt=owl"], "conditioning=none takes no condition"),
        (["conditioning=none", "labels=[1]"], "conditioning=none takes no condition"),
    ],
)
def test_conditions_that_exclude_each_other_are_told(arguments, said):
    assert any(said in line for line in mistakes(*arguments))


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "amgx.Thing", "subprocess.run"])
def test_a_target_outside_the_project_is_refused_unless_allowed(target):
    (line,) = mistakes(f"++model._target_={target}")
    assert line.startswith(f"model._target_={target}: must begin with")


def test_a_nested_target_is_refused_too():
    (line,) = mistakes("guidance=released_iddpm", "++guidance.threshold._target_=os.system")
    assert line.startswith("guidance.threshold._target_=os.system")


def test_an_allowed_prefix_opens_the_door_to_ones_own_components(tmp_path, monkeypatch):
    (tmp_path / "ones_own.py").write_text("def bank(shelf): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["++data._target_=ones_own.bank", "++data.shelf=3"]
    assert mistakes(*own)[0].startswith("data._target_=ones_own.bank: must begin with")
    assert check(compose_config([*own, "allow=[ones_own.]"])).data["shelf"] == 3
    assert mistakes("++data._target_=ones_own.bank", "allow=[ones_own.]") == [
        "data.shelf: missing; ones_own.bank needs it"
    ]


def test_a_target_that_does_not_exist_is_told():
    (line,) = mistakes("++model._target_=amg.worlds.closed_form.ClosedFrom")
    assert line == "model._target_=amg.worlds.closed_form.ClosedFrom: no such class or function"


def test_a_missing_strength_constant_names_model_and_similarity():
    (line,) = mistakes("model=iddpm_cifar10", "similarity=pca", "guidance=full")
    assert "model=iddpm_cifar10" in line and "similarity=pca" in line and "no constants" in line


def test_a_value_that_only_the_user_can_give_is_asked_for():
    (line,) = mistakes("data=folder")
    assert line.startswith("data.path: needs a value, a folder of training images with captions")
    assert line.endswith("model=lab_sd runs now")
    assert mistakes("task=collect") == ["task.runs: needs a value"]


def test_all_values_that_only_the_user_can_give_are_asked_for_at_once():
    lines = mistakes("model=local", "prompt=x")
    assert [line.split(":")[0] for line in lines] == ["data.path", "model.source"]
    assert all("needs a value, a" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guidance=full", "++guidance.c3=abc"], "guidance.c3=abc: a number is expected"),
        (["guidance=full", "++guidance.c3=null"], "guidance.c3=null: a number is expected"),
        (["guidance=full", "++guidance.normalize=3"], "guidance.normalize=3: true or false is expected"),
        (["++similarity.copy=abc"], "similarity.copy=abc: a number is expected"),
        (["data=folder", "data.path=2024"], "data.path=2024: text is expected"),
        (["data=folder", "data.path=[a]"], 'data.path=["a"]: text is expected'),
        (["data=folder", "data.path=x", "++data.size=abc"], f"data.size=abc: {SIZE} is expected"),
        (["data=folder", "data.path=x", "++data.size=1.5"], f"data.size=1.5: {SIZE} is expected"),
        (["data=folder", "data.path=x", "++data.size=true"], f"data.size=true: {SIZE} is expected"),
        (["data=folder", "data.path=x", "++data.size=[8]"], f"data.size=[8]: {SIZE} is expected"),
        (["data=folder", "data.path=x", "++data.size=[8,x]"], f'data.size=[8, "x"]: {SIZE} is expected'),
        (["task=download", "++task.seconds=abc"], "task.seconds=abc: a number is expected"),
        (["++trainer.max_epochs=abc"], "trainer.max_epochs=abc: a whole number or null is expected"),
        (["similarity@judge=nl2", "++judge.k=a"], "judge.k=a: a whole number is expected"),
    ],
)
def test_a_word_where_a_component_wants_a_number_is_told_by_its_key(arguments, said):
    assert mistakes(*arguments) == [said]


def test_a_whole_number_serves_for_a_number_and_null_where_it_may():
    run = check(compose_config(["guidance=full", "++guidance.c3=7", "data=folder", "data.path=x", "++data.size=null"]))
    assert run.guidance["c3"] == 7 and run.data["size"] is None
    assert check(compose_config(["data=folder", "data.path=x", "++data.size=[24,16]"])).data["size"] == [24, 16]


def test_annotations_of_scalars_alone_are_checked():
    def target(a: "Literal['x', 'y'] | None", b: "float | torch.Tensor", c: "Unknown", d, e: int | str = 1): ...  # noqa: F821

    import inspect

    from experiments.config import scalars

    target.__globals__.setdefault("Literal", scalars.Literal)
    of = inspect.signature(target).parameters
    assert scalars.expected("z", of["a"], target) == "x or y or null is expected"
    assert scalars.expected("x", of["a"], target) is None
    assert [scalars.expected("z", of[name], target) for name in "bcde"] == [None] * 4
    assert scalars.expected(1.5, of["e"], target) == "a whole number or text is expected"


def test_tables_1_and_4_feed_sscd_as_the_released_code_does_and_their_judge_as_its_authors_do():
    for experiment in ("table1", "table4"):
        run = check(compose_config([f"experiment={experiment}", "model=sd", "guidance=full"]))
        assert run.similarity["preset"] == "amg_release" and run.guidance["c3"] == 100
        assert run.judge["path"] != run.similarity["path"] and "preset" not in run.judge
    assert check(compose_config(["model=sd"])).similarity["preset"] == "official"
    assert check(compose_config(["model=sd", "++similarity.preset=dcr"])).similarity["preset"] == "dcr"


def test_the_row_of_the_released_code_feeds_and_differentiates_sscd_as_it_does():
    run = check(compose_config(["model=sd", "guidance=released_sd"]))
    assert run.similarity["preset"] == "amg_release" and run.similarity["norm_gradient"]
    run = check(compose_config(["model=sd", "guidance=released_sd", "similarity=clip_sscd"]))
    assert run.similarity["candidates"] == 1000
    assert run.similarity["fine"]["preset"] == "amg_release" and run.similarity["fine"]["norm_gradient"]
    assert not check(compose_config(["model=sd", "guidance=full"])).similarity["norm_gradient"]
    ours, plain = (check(compose_config([f"guidance={row}"])) for row in ("released_sd", "full"))
    assert ours.similarity == plain.similarity and ours.guidance["name"] == "released_sd"
    rows = [
        check(compose_config(["experiment=rivals", "model=sd", f"guidance={row}"])) for row in ("released_sd", "full")
    ]
    assert {run.similarity["preset"] for run in rows} == {"amg_release"}, "rows that are counted differently"


CANNOT = [
    *((f"{name} conditioning=none", "acts through text") for name in ("spe", "dup", "spe_dup", "wen")),
    *((f"{name} conditioning=none", "guidance=sim") for name in ("stp", "dtp", "og", "han_batch")),
    *((name, "model=closed_form has no text encoder") for name in ("wen", "gni", "rt", "rna", "cwr")),
    *(
        (f"{name} {without}", f"guidance={name}")
        for name in ("wen", "stp", "dtp", "og", "han_batch")
        for without in ("model=lab_sd s0=1", "labels=[1] s0=1")
    ),
    ("ren", "edits cross-attention, and model=closed_form has none"),
    ("ren model=ddpm_cifar10", "acts through text"),
    ("oracle model=lab_sd", "model=lab_sd has none; use model=closed_form"),
    ("chain", "names no guidances; guidance=chain +guidance@guidance.guidances.a="),
    *((f"released_iddpm model={name}", f"model={name} has none; use model=iddpm_cifar10, or guidance.through=eps")
      for name in ("closed_form", "lab_sd", "lab_ddpm", "ddpm_cifar10")),
    *((f"released_iddpm model=iddpm_cifar10 {sampler}", "draws without it; use sampler=ddpm, or guidance.through=eps")
      for sampler in ("sampler=ddim", "sampler.scheduler=diffusers.DPMSolverMultistepScheduler")),
]  # fmt: skip
CAN = [
    *(f"{name} conditioning=none" for name in ("none", "sim", "full", "broken_memories")),
    *(f"{name} model={model}" for name in ("wen", "gni", "rt", "rna", "cwr", "ren") for model in ("lab_sd", "sdxl")),
    *(f"{name} labels=[1] s0=3" for name in ("stp", "dtp", "og", "han_batch", "broken_memories")),
    *(f"{name} model=lab_sd" for name in ("stp", "dtp", "og", "han_batch")),
    *(
        f"{name} {chosen}"
        for name in ("spell", "safe_denoiser", "sgf", "procreate")
        for chosen in ("", "conditioning=none", "model=lab_sd", "model=lab_ddpm", "model=sd")
    ),
    *("spe_dup", "oracle", "released_iddpm model=iddpm_cifar10", "released_iddpm ++guidance.through=eps"),
    *(f"released_iddpm model=iddpm_cifar10 {sampler} ++guidance.through=eps" for sampler in
      ("sampler=ddim", "sampler.scheduler=diffusers.DPMSolverMultistepScheduler")),
]  # fmt: skip


@pytest.mark.parametrize("chosen, said", [*CANNOT, *((chosen, None) for chosen in CAN)])
def test_a_guidance_that_a_model_cannot_serve_is_told_in_a_line(chosen, said):
    name, *keys = chosen.split()
    reason = not_applicable(check(composed(f"guidance={name}", *keys)))
    assert (reason is None) if said is None else (reason.startswith(f"guidance={name}: ") and said in reason), reason
    assert "\n" not in (reason or "")


PROBE = """
import sys
sys.path.insert(0, {root!r})
from experiments.cli.main import main
code = main({arguments!r})
heavy = sorted({{"torch", "lightning", "diffusers", "transformers", "numpy", "pandas", "wandb"}} & set(sys.modules))
print("heavy:", *heavy)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["n_samples=-3", "seed=x"], 2, "n_samples=-3"),
        (["sed=3"], 2, "did you mean seed?"),
        (["guidance=ful"], 2, "did you mean full?"),
        (["-m", "guidance=none,ful"], 2, "did you mean full?"),
        (["prompt=owl", "labels=[1]"], 2, "give one of them"),
        (["++model._target_=os.system"], 2, "must begin with"),
        (["--help"], 0, "guidance=full"),
    ],
)
def test_run_level_mistakes_and_help_load_nothing_heavy(arguments, code, said, tmp_path):
    probe = PROBE.format(root=str(ROOT), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_of_bad_input_is_2_also_in_component_keys(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(["model.siez=16", "guidance=full", "guidance.c4=1"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("error: ") for line in told)


def test_a_key_of_an_earlier_version_names_its_successor():
    (line,) = mistakes("row=full")
    assert line.startswith("row: no longer a key; ") and "guidance=" in line
