"""docs/configuration.md says what the code takes, and is what the code writes."""

import re

import pytest

from amg.guidance import AntiMemorizationGuidance
from experiments.cli import reference
from experiments.config.schema import RunConfig


@pytest.fixture(scope="module")
def page():
    return reference.page()


def test_the_page_in_the_repository_is_what_the_code_writes_now(page):
    assert reference.PAGE.read_text() == page, "stale: python -m experiments.cli.reference"


def test_every_yaml_is_a_choice_with_its_own_line(page):
    for file in reference.CONF.rglob("*.yaml"):
        if group := reference._group(file):
            section = page.split(f"## {group}\n")[1].split("\n**")[0]
            name = file.relative_to(reference.CONF / group).with_suffix("")
            assert section.count(f"\n| `{name}` |") == 1, file


def test_a_choice_tells_each_key_once_and_names_what_decides_it(page):
    told = re.findall(r"^\| `[\w/]+` \| .* \| (.*) \|$", page, re.M)
    sets = [re.findall(r"(?:^|, )`([\w.@/]+)[=`]", cell) for cell in told]
    assert sum(map(len, sets)) > 100 and all(len(one) == len(set(one)) for one in sets)
    assert "${" not in page
    (line,) = [line for line in page.splitlines() if line.startswith("| `spe_dup` | Table 4")]
    assert line.endswith("| `full`, `terms=[spe, dup]` |")
    (line,) = [line for line in page.splitlines() if line.startswith("| `released_sd` | The authors")]
    assert line.endswith("`sscd=amg_release`, `sscd_norm=true` |")


def test_a_class_is_told_once_with_type_default_and_meaning_of_its_keys(page):
    assert page.count("**`amg.guidance.AntiMemorizationGuidance`**") == 1
    line = next(line for line in page.splitlines() if line.startswith("| `normalize` |"))
    assert "| bool | false | takes ∇σ_t to unit length" in line
    assert page.count("**`amg.thresholds.Exponential`**") == 1
    assert "| `end` | float | needed | The level that λ decays to as t grows. |" in page


def test_keys_of_the_run_are_those_of_the_schema_with_their_limits(page):
    assert "| `n_samples` | int, > 0 | 16 | null: each prompt or label once |" in page
    assert "| `sampler.eta` | float, ≥ 0, ≤ 1 | 0.0 |" in page
    told = set(re.findall(r"^\| `(\w+)` \|", page.split("## data")[0], re.M))
    plain = {"name", "seed", "n_samples", "s0", "conditioning", "prompt", "prompts", "labels", "output_dir", "allow"}
    assert plain <= told & set(RunConfig.model_fields)


def test_keys_of_a_docstring_that_share_an_entry_share_its_text():
    found = reference.described(AntiMemorizationGuidance.__doc__)
    assert found["c1"] == found["c3"] == "strengths of G_spe, G_dup and G_sim (Eqs. 13, 15, 17)."
    assert found["count"].startswith("G_dup acts by") and found["count"].endswith("released code: 1000, 20.")


def test_a_yaml_s_comment_is_its_first_sentences_without_hydra_s_directive():
    assert reference.comment("# @package _global_\n# Two lines,\n# one sentence.\n# More.\na: 1 # no\n") == (
        "Two lines, one sentence."
    )
    assert reference.comment("a: 1 # no\n") == ""
