"""The paper's claims against numbers made by hand: each verdict both ways, and the cases where nothing decides."""

import pytest

from amg.metrics import Mean, Share
from experiments.tables.claims import as_good_as, at_least, at_most, claims, fewer, none_left
from experiments.tables.rows import pool


def row(n=100, copies=0, judge=None, truth=None, novel=None, causes=None, **more):
    """Metrics as `experiments.run.evaluate` leaves them, of what a claim looks at."""
    counts = {"copies": copies, "judge_copies": judge, "truth_copies": truth, "strict": more.pop("strict", None)}
    made = {key: None if count is None else Share(count, n) for key, count in counts.items()}
    made["judge_novel"] = novel and Share(*novel)
    made["by_cause"] = {cause: {"n": 24, "copies": Share(count, 24)} for cause, count in (causes or {}).items()}
    return {"n": n, **made, **more}


def verdicts(metrics):
    return {one["claim"]: one["verdict"] for one in claims(metrics)}


def said(metrics, start):
    """(verdict, numbers) of the one claim that begins so."""
    (found,) = [one for one in claims(metrics) if one["claim"].startswith(start)]
    return found["verdict"], found["numbers"]


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [(2, 30, True), (25, 30, None), (30, 30, False), (50, 30, False)],
)
def test_a_fall_is_told_only_where_the_interval_excludes_zero(after, before, expected):
    assert fewer(Share(after, 100), Share(before, 100)) is expected


def test_a_bound_is_kept_or_broken_by_the_whole_interval():
    for mean, half, expected in ((1.0, 0.02, True), (1.1, 0.02, False), (1.02, 0.05, None)):
        assert at_most(Mean(mean, 9, half / 1.96), 1.03) is expected
        assert at_least(Mean(-mean, 9, half / 1.96), -1.03) is expected
    assert at_least(Mean(1.1, 9, 0.01), 1.03) is True
    assert none_left(Share(0, 9)) and not none_left(Share(1, 9))


def test_as_good_is_no_worse_in_both_and_worse_is_beyond_chance_in_one():
    amg = Share(2, 100), Mean(-1.0, 100, 0.2)
    assert as_good_as((Share(1, 100), Mean(-0.5, 100, 0.2)), amg) is True
    assert as_good_as((Share(40, 100), Mean(-0.5, 100, 0.2)), amg) is False
    assert as_good_as((Share(1, 100), Mean(-5.0, 100, 0.2)), amg) is False
    assert as_good_as((Share(1, 100), Mean(-1.1, 100, 0.2)), amg) is None


def test_a_sweep_without_rows_of_the_paper_claims_nothing():
    assert claims({}) == []
    assert claims({"s0=3": row(copies=4), "none": None, "full": "n/a"}) == []


def test_full_clears_all_copies_by_guide_and_truth():
    verdict, numbers = said({"none": row(copies=50, truth=48), "full": row(truth=0)}, "AMG clears all copies")
    assert verdict == "holds"
    assert "by the truth 48/100 → 0/100 (0–3.7 %)" in numbers
    assert said({"none": row(copies=50, truth=48), "full": row(truth=1)}, "AMG clears")[0] == "does not hold"
    assert said({"none": row(copies=50), "full": row(copies=2)}, "AMG clears")[0] == "does not hold"
    assert said({"none": row(), "full": row()}, "AMG clears")[0] == "not measured"


def test_without_the_truth_a_count_by_the_guide_alone_proves_nothing():
    none = row(n=500, copies=250, judge=250, novel=(5, 250))
    for judged, verdict in ((0, "holds"), (12, "holds"), (60, "does not hold"), (18, "holds"), (30, "does not hold")):
        assert said({"none": none, "full": row(n=500, judge=judged)}, "AMG clears")[0] == verdict
    few = {"none": row(n=8, copies=4, judge=4, novel=(0, 4)), "full": row(n=8, judge=2)}
    assert said(few, "AMG clears")[0] == "not measured"


def test_claims_are_told_for_every_setting_of_a_sweep():
    text = {"none": row(copies=9, causes={"ordinary": 0}), "full": row(causes={"ordinary": 0})}
    plain = {f"guidance={name} conditioning=none": one for name, one in (("none", row(copies=9)), ("full", row()))}
    found = verdicts(text | plain)
    assert {"AMG clears all copies under captions", "AMG clears all copies (conditioning=none)"} <= set(found)
    assert "AMG clears all copies" in verdicts({"none": row(copies=9), "full": row()})


def test_strong_is_held_to_the_stricter_threshold():
    for left, verdict in ((0, "holds"), (3, "does not hold")):
        metrics = {"none": row(copies=9, strict=20), "strong": row(strict=left)}
        assert said(metrics, "AMG (Strong)")[0] == verdict


def test_without_sim_copies_remain_or_do_not():
    none, full = row(copies=50, judge=50), row(copies=0, judge=2)
    verdict, numbers = said({"none": none, "spe_dup": row(copies=20, judge=30), "full": full}, "Without G_sim")
    assert verdict == "holds" and "by the judge 50/100 → 30/100" in numbers and "2/100" in numbers
    assert said({"none": none, "spe_dup": row(judge=0), "full": full}, "Without G_sim")[0] == "does not hold"


def test_each_guidance_is_judged_on_its_own_cause():
    before = {"specific prompt": 20, "duplicated caption": 20, "duplicated image": 20, "ordinary": 0}
    none = row(copies=60, causes=before)
    metrics = {
        "none": none,
        "spe": row(causes=before | {"specific prompt": 2}),
        "dup": row(causes=before | {"specific prompt": 0}),
        "sim": row(causes=before | {"duplicated image": 18}),
    }
    assert said(metrics, "G_spe answers")[0] == "holds"
    verdict, numbers = said(metrics, "G_dup answers")
    assert verdict == "does not hold" and "by the guide 20/24 → 20/24" in numbers and "specific prompt −83.3" in numbers
    verdict, numbers = said(metrics, "G_sim answers")
    assert verdict == "not measured" and "too few samples" in numbers


def test_the_judge_is_compared_with_its_own_false_alarms():
    """Of exact novel pictures nL2 calls 17 % copies: so many on AMG's are no sign of copies."""
    none = row(n=500, copies=250, judge=290, novel=(42, 250))
    for judged, verdict in ((85, "holds"), (200, "does not hold")):
        found, numbers = said({"none": none, "full": row(n=500, judge=judged)}, "AMG undoes copies")
        assert found == verdict and "42/250" in numbers
    few = {"none": row(n=20, copies=10, judge=11, novel=(1, 10)), "full": row(n=20, judge=3)}
    assert said(few, "AMG undoes copies")[0] == "not measured"


def test_quality_is_kept_lost_or_open():
    for ratio, error, verdict in ((0.99, 0.01, "holds"), (1.2, 0.03, "does not hold"), (1.02, 0.04, "not measured")):
        metrics = {"full": row(matched_ratio=Mean(ratio, 100, error))}
        assert said(metrics, "AMG keeps image quality")[0] == verdict


def test_alignment_is_kept_on_ordinary_captions_and_lost_on_others():
    none = row(copies=9, alignment=45.0, alignment_ordinary=50.0, alignment_planted=40.0)
    full = row(
        **{"alignment": 43.0, "alignment_ordinary": 49.9, "alignment_planted": 36.0},
        **{"alignment_change": Mean(-2.0, 100), "alignment_change_ordinary": Mean(-0.1, 50, 0.1)},
        **{"alignment_change_planted": Mean(-4.0, 50, 0.5), "aligned_ordinary": Share(40, 50)},
    )
    found = verdicts({"none": none, "full": full})
    assert found["AMG keeps text alignment on ordinary captions (within 5 % of unguided)"] == "holds"
    lost = "AMG keeps text alignment on captions of memorized images (within 5 % of unguided)"
    assert found[lost] == "does not hold"
    assert not any("all captions" in text for text in found)


def test_always_on_ruins_quality_or_does_not():
    for ratio, error, verdict in ((4.0, 0.3, "holds"), (1.1, 0.05, "does not hold"), (1.6, 0.2, "not measured")):
        metrics = {"none": row(copies=5), "sim_always": row(matched_ratio=Mean(ratio, 100, error))}
        assert said(metrics, "Always-on")[0] == verdict
    assert said({"sim_always": row(matched_ratio=None)}, "Always-on")[0] == "not measured"


@pytest.mark.parametrize("name", ["parabolic", "calibrated"])
@pytest.mark.parametrize(("constant", "changing", "verdict"), [
    ((40, 0.30), (0, 0.40), "holds"),  # leaves copies
    ((0, 0.50), (0, 0.20), "holds"),  # as private, for more steps
    ((0, 0.20), (0, 0.50), "does not hold"),
    ((0, 0.50), (40, 0.20), "does not hold"),
])  # fmt: skip
def test_a_constant_threshold_leaves_copies_or_guides_more(constant, changing, verdict, name):
    rows = [row(copies=copies, steps_guided=steps) for copies, steps in (constant, changing)]
    found, numbers = said({"sim_constant": rows[0], f"sim_{name}": rows[1]}, f"A {name} λ_t")
    assert found == verdict and f"sim_{name} {changing[0]}/100" in numbers


def test_a_row_whose_threshold_may_be_constant_is_no_test_of_a_changing_one():
    """In the closed-form world λ_t of `full` is a constant with nL2."""
    metrics = {"sim_constant": row(copies=40, steps_guided=0.3), "full": row(steps_guided=0.1)}
    assert not any("λ_t" in text for text in verdicts(metrics))
    assert not any("λ_t" in text for text in verdicts(metrics | {"sim_calibrated": "n/a"}))


def rival(copies, change, error=0.2):
    return row(copies=copies, alignment=50.0, alignment_change=Mean(change, 100, error))


def test_rivals_pay_for_privacy_in_alignment_unless_one_does_not():
    metrics = {"none": row(copies=50), "rt": rival(10, -5.0), "gni": rival(49, 0.0)}
    verdict, numbers = said(metrics, "Rivals trade")
    assert verdict == "holds" and "rt 10/100, −5.0 ± 0.4" in numbers and "removing none beyond chance: gni" in numbers
    verdict, numbers = said(metrics | {"wen": rival(5, 0.1)}, "Rivals trade")
    assert verdict == "does not hold" and "paying nothing beyond chance: wen" in numbers
    assert said({"none": row(copies=50), "gni": rival(49, 0.0)}, "Rivals trade")[0] == "not measured"


def test_a_rival_as_private_and_as_aligned_as_amg_is_named():
    metrics = {
        "none": row(copies=50, alignment=50.0),
        "full": rival(2, -1.0),
        "rt": rival(2, -5.0),
        "gni": rival(49, 0.0),
    }
    assert said(metrics, "No rival")[0] == "holds"
    verdict, numbers = said(metrics | {"wen": rival(1, -0.5)}, "No rival")
    assert verdict == "does not hold" and "no worse: wen 1/100" in numbers
    verdict, numbers = said(metrics | {"wen": rival(1, -1.1)}, "No rival")
    assert verdict == "not measured" and "too few samples to tell: wen" in numbers


def test_pooled_rows_are_judged_by_their_pooled_counts():
    none = pool([row(copies=30, strict=40), row(copies=20, strict=30)])
    full = pool([row(copies=0), row(copies=1)])
    verdict, numbers = said({"none": none, "full": full}, "AMG clears all copies")
    assert verdict == "does not hold" and "50/200 → 1/200" in numbers
