"""Texts and paths reach a run as they were typed, whatever Hydra's grammar thinks of them."""

import inspect

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from amg.prompts import SETS, read_prompts
from experiments.cli.main import CONF, compose_config
from experiments.cli.quoting import quote
from experiments.config.bind import PATHS, PROVIDED, every, locate

PARSER = OverridesParser.create()
ODD = [
    "an owl",
    "",
    "it's",
    "'",
    "a 'quoted' word",
    "'one' and 'two'",
    '"One" two "three (1985)"',
    "'open to the end\\'",
    'say "cheese"',
    "ends in a backslash \\",
    "two at the end \\\\",
    "\\'",
    "back\\slash",
    "\\\\'",
    "50% off: {red, blue} (new) [old] = a+b~c@d",
    "glob(*)",
    "range(1,3)",
    "1,2,3",
    "null ",
    "NULL",
    "true",
    "17",
    "key=value",
    "Ünïcode – “typographic” 山羊 🐐",
    "tab\tand\nnewline",
    "a backslash before the last newline\\\n",
    "  spaces around  ",
]


def parsed(argument):
    return PARSER.parse_override(argument).value()


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_prompt_of_the_prompt_files_survives_hydras_parser(name):
    prompts = read_prompts(name)
    changed = [prompt for prompt in prompts if parsed(quote(f"prompt={prompt}")) != prompt]
    assert len(prompts) == 500 and changed == []


def test_many_of_those_prompts_would_not_survive_unquoted():
    def breaks(prompt):
        try:
            return parsed(f"prompt={prompt}") != prompt
        except Exception:  # whatever Hydra's grammar raises
            return True

    prompts = [prompt for name in SETS for prompt in read_prompts(name)]
    assert sum(map(breaks, prompts)) > 0.2 * len(prompts)


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_survive_hydras_parser(text):
    assert parsed(quote(f"prompt={text}")) == text


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_any_text_but_quotes_lists_and_null_survives(text):
    assume("${" not in text)  # escaped for OmegaConf, which reads after the parser: see the last test
    assume(text != "null" and text[:1] + text[-1:] not in ("''", '""', "[]"))  # these mean something to Hydra
    assert parsed(quote(f"prompt={text}")) == text


@given(st.text(max_size=40))
def test_quoting_twice_changes_nothing(text):
    once = quote(f"prompt={text}")
    assert quote(once) == once


@pytest.mark.parametrize(
    "argument",
    [
        "prompt=null",
        "prompt='an owl'",
        'prompt="an owl"',
        "prompt='an owl','it\\'s'",
        "prompt=[owl,cat]",
        "prompt=['a, b',c]",
        "seed=3",
        "name=a b",
        "-m",
        "prompts=null",
        "n_samples=NULL",
        "data.path='a b'",
        "task.runs=[runs/a,b]",
        "guidance@guidance.guidances.a=gni",
    ],
)
def test_lists_null_quoted_text_and_other_keys_stay(argument):
    assert quote(argument) == argument


PLACES = [
    "Bilder ü",
    "a=b",
    "it's",
    "x, y",
    "~/a",
    "2024",
    "1e3",
    "true",
    "C:\\new folder\\",
    "a (1)",
    "[a",
    "{a}",
    "f(x)",
]


@pytest.mark.parametrize("key", ["data.path", "++similarity.fine.path", "output_dir", "+prompts", "metrics.reference"])
def test_a_path_survives_hydras_parser_under_every_key(key):
    assert [parsed(quote(f"{key}={place}")) for place in PLACES] == PLACES


def test_other_values_are_quoted_only_where_hydras_grammar_takes_them_not():
    assert quote("logger.project=Fußball") == "logger.project='Fußball'" and quote("seed=3") == "seed=3"
    assert parsed(quote("task.runs=[läufe/*,a=b,'c d']")) == ["läufe/*", "a=b", "c d"]


def test_a_comma_between_paths_sweeps_over_them():
    swept = PARSER.parse_override(quote("data.path=Bilder ü,it's,'a,b',~/c", sweep=True))
    assert [value.strip("'") for value in swept.sweep_string_iterator()] == ["Bilder ü", "it\\'s", "a,b", "~/c"]
    assert quote("prompts=choice(a.txt,b.txt)", sweep=True) == "prompts=choice(a.txt,b.txt)"
    assert parsed(quote("prompt=an owl, red", sweep=True)) == "an owl, red"


def test_a_reference_in_a_path_is_followed_and_in_a_prompt_it_is_text():
    assert compose_config([quote("output_dir=läufe/${seed}"), "seed=7"]).output_dir == "läufe/7"


def test_every_key_that_takes_a_path_is_known_as_one():
    """Keys of components whose annotation names `Path`, in all of `conf/`."""
    targets = {
        node["_target_"]
        for file in CONF.rglob("*.yaml")
        for _, node in every("", OmegaConf.to_container(OmegaConf.load(file)) or {})
        if "_target_" in node
    }
    taken = {
        name
        for target in targets
        for name, parameter in inspect.signature(locate(target)).parameters.items()
        if "Path" in str(parameter.annotation) and name not in PROVIDED
    }
    assert {"path", "cache", "source"} <= taken <= set(PATHS)


def test_lists_and_null_keep_their_meaning():
    assert parsed(quote("prompt=null")) is None
    assert parsed(quote("prompt=['a, b',c]")) == ["a, b", "c"]


def test_pluses_before_the_key_are_kept():
    assert quote("++prompt=a, b") == "++prompt='a, b'"
    assert quote("+prompt=it's") == "+prompt='it\\'s'"


@pytest.mark.parametrize(
    "text", ["an owl, (red)", "it's", "100% {new}", "back\\slash \\", "${seed}", "\\${", "a ${b'}c \\"]
)
def test_a_quoted_prompt_arrives_in_the_composed_configuration(text):
    assert compose_config([quote(f"prompt={text}")]).prompt == text
