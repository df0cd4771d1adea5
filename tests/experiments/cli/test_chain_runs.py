"""Chains of guidances as one configuration: composed, checked, and run end to end."""

import numpy as np
import pytest

from amg.guidance import Chain, Guidance
from amg.guidance.base import flat
from amg.guidance.rivals.somepalli import RandomNumbers
from experiments.cli.main import compose_config, main
from experiments.config.bind import check, not_applicable
from experiments.config.build import component
from experiments.config.schema import ConfigError
from experiments.run import records

QUICK = ["metrics.extractor=none", "trainer=cpu"]
BY_HAND = ["guidance=chain", "+guidance@guidance.guidances.a=gni", "+guidance@guidance.guidances.b=sim"]


def checked(*arguments):
    return check(compose_config(list(arguments)))


def mistakes(*arguments) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(*arguments)
    return caught.value.lines


def traces(table, name="trace_similarity"):
    return np.stack(table[name].to_numpy())


def test_a_chain_is_composed_in_order_from_yamls_that_stay_within_reach():
    run = checked("guidance=gni_full", "++guidance.guidances.full.c3=7", "guidance.guidances.gni.scale=0.3")
    gni, full = run.guidance["guidances"]
    assert (gni["name"], gni["scale"], full["name"], full["c3"]) == ("gni", 0.3, "full", 7)
    assert full["c1"] == checked("guidance=full").guidance["c1"]
    assert [part["name"] for part in checked(*BY_HAND).guidance["guidances"]] == ["gni", "sim"]


def test_its_parts_are_built_from_left_to_right():
    node = checked(*BY_HAND).guidance
    chain = component(node, similarity=lambda images: None, threshold=lambda t: t)
    assert [type(one).__name__ for one in chain.guidances] == ["GaussianNoiseInput", "AntiMemorizationGuidance"]
    assert chain.guidances[1].terms == ("sim",)


def test_chains_within_chains_are_flat_in_order():
    a, b, c = Guidance(), Guidance(), Guidance()
    assert flat(Chain([a, Chain([Chain([b]), c])])) == [a, b, c] and flat(a) == [a]


def test_mistakes_inside_a_chain_are_told_by_name():
    assert mistakes("guidance=gni_full", "++guidance.guidances.full.c4=1", "++guidance.guidances.gni.scal=1") == [
        "guidance.guidances.gni.scal: amg.guidance.rivals.somepalli.GaussianNoiseInput takes no such key; "
        "did you mean scale?",
        "guidance.guidances.full.c4: amg.guidance.AntiMemorizationGuidance takes no such key; did you mean c3?",
    ]
    (line,) = mistakes("guidance=gni_full", "++guidance.guidances.full._target_=os.system")
    assert line.startswith("guidance.guidances.full._target_=os.system: must begin with")


def test_a_chain_is_not_applicable_where_one_of_its_parts_is_not():
    reasons = {
        "acts through text": ["guidance=gni_full", "conditioning=none"],
        "rewrites prompts or edits their embeddings, and model=closed_form has no text encoder": ["guidance=rna_full"],
        "edits cross-attention": ["guidance=ren"],
    }
    for told, arguments in reasons.items():
        reason = not_applicable(checked(*arguments))
        assert told in reason and reason.startswith(f"guidance={checked(*arguments).guidance['name']}: ")
    assert not_applicable(checked("guidance=gni_full", "model=lab_sd")) is None
    assert not_applicable(checked("guidance=rna_full", "model=lab_sd")) is None
    alone = not_applicable(checked("guidance=rna"))
    assert alone and alone.startswith("guidance=rna: rewrites prompts")


def test_noised_embeddings_under_amg_leave_the_records_of_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [
        *QUICK,
        "model=lab_sd",
        "sampler.steps=12",
        "n_samples=12",
        "threshold=constant",
        "threshold.value=0.85",
        "prompts=planted",
    ]
    for row in ("guidance=gni_full", "guidance=full", "guidance=gni"):
        assert main([*common, row, f"output_dir={row.split('=')[1]}"]) == 0
    both, amg, gni = (records.read(folder) for folder in ("gni_full", "full", "gni"))
    assert (both.steps_guided == traces(both, "trace_flagged").sum(1)).all()
    guided = both.steps_guided > 0
    assert guided.any() and not guided.all()
    late = np.array([any(flagged[1:]) for flagged in both.trace_flagged])  # at the first step G_sim rests
    assert (both.norm_sim[late] > 0).all() and (both.norm_spe > 0).any()
    assert (both.loc[~guided, ["norm_spe", "norm_dup", "norm_sim"]] == 0).all(axis=None)
    # the embeddings were noised: already the first x̂0 is another; and where AMG never acted it is gni's chain
    assert (traces(both)[:, 0] != traces(amg)[:, 0]).all()
    np.testing.assert_allclose(traces(both)[~guided], traces(gni)[~guided], atol=1e-4)
    assert (both.similarity[late] != gni.similarity[late]).any()
    assert (gni[["norm_spe", "norm_dup", "norm_sim"]] == 0).all(axis=None)


@pytest.mark.slow
def test_numbers_in_the_prompt_under_amg_are_amg_on_the_rewritten_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [*QUICK, "model=lab_sd", "sampler.steps=6", "n_samples=1", "seed=5", "threshold=always"]
    prompt = "red apple"
    (written,) = RandomNumbers().prompts([prompt], [5])
    assert main([*common, "guidance=rna_full", f"prompt='{prompt}'", "output_dir=chain"]) == 0
    assert main([*common, "guidance=full", f"prompt='{written}'", "output_dir=written"]) == 0
    chain, other = records.read("chain"), records.read("written")
    assert chain.prompt[0] == prompt and other.prompt[0] == written
    assert chain.steps_guided[0] == 6 and chain.norm_sim[0] > 0 and chain.norm_spe[0] > 0
    for name in ("similarity", "judge", "steps_guided", "norm_spe", "norm_dup", "norm_sim"):
        assert chain[name][0] == pytest.approx(other[name][0], rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(traces(chain), traces(other), atol=1e-4)
