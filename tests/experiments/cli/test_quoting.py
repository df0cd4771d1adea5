"""Free text reaches a run as it was typed, whatever Hydra's grammar thinks of it."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st

from amg.prompts import SETS, read_prompts
from experiments.cli.main import compose_config, quote

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
        "+prompts=file.txt",
    ],
)
def test_lists_null_quoted_text_and_other_keys_stay(argument):
    assert quote(argument) == argument


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
