"""A run's metrics from a run folder small enough to count by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_runs import record

from amg.metrics import Share, frechet_distance, moments
from amg.metrics.extractors import Extractor
from experiments.run import records
from experiments.run.evaluate import evaluate, matched, thresholds_used

PLANTED = "specific prompt"


def row(seed, similarity, **changes):
    return record(seed, similarity=similarity, steps=10, **changes)


def run(folder, rows, seed=0):
    records.append(folder, rows)
    (folder / "pictures").mkdir()
    noise = torch.Generator().manual_seed(seed)
    for one in rows:
        array = torch.randint(0, 256, (4, 4, 3), generator=noise, dtype=torch.uint8).numpy()
        Image.fromarray(array).save(records.picture_path(folder, one["seed"]))
    return folder


class Colours:
    """Mean colours, counting the pictures it saw."""

    def __init__(self):
        self.seen = 0

    def __call__(self, pixels):
        self.seen += len(pixels)
        return pixels.mean((2, 3)) / 255


def colours():
    return Extractor("colours", "none", 3, Colours())


REFERENCE = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(9)) * 2 - 1
LIMITS = {"similarity_copy": 0.8, "similarity_strict": 0.6, "judge_copy": -1.4}
PICTURELESS = {"extractor": None, "reference_pictures": None, "cache_dir": None}


@pytest.fixture
def text_run(tmp_path):
    known = [
        # cause, similarity, judge, truth, aligned, planted, steps guided, dropped
        (PLANTED, 0.95, -0.2, True, True, True, 4, 1),
        (PLANTED, 0.85, -1.6, False, True, True, 5, 0),
        (PLANTED, 0.70, -1.3, True, False, False, 1, 0),
        ("ordinary", 0.30, -2.0, False, True, False, 0, 0),
        ("ordinary", 0.81, -1.9, False, True, False, 0, 0),
    ]
    names = ("cause", "judge", "truth", "aligned", "planted", "steps_guided", "dropped")
    rows = [
        row(i, similarity, **dict(zip(names, (cause, *rest), strict=True)), bits=0.5 * i, seconds=i / 10)
        for i, (cause, similarity, *rest) in enumerate(known)
    ]
    return run(tmp_path / "text", rows)


def test_counts_and_shares_are_those_one_counts_by_hand(text_run):
    result = evaluate(text_run, **LIMITS, **PICTURELESS)
    assert result["n"] == 5
    assert result["copies"] == Share(3, 5)
    assert result["strict"] == Share(4, 5)
    assert result["judge_copies"] == Share(2, 5)
    assert result["planted_copies"] == Share(1, 5)  # the judge's other copy is of another picture
    assert result["truth_copies"] == Share(2, 5)
    assert result["bits"].mean == pytest.approx(1.0)
    assert result["top1"] == 0.95
    assert result["top5"] == pytest.approx(0.85 + 0.8 * 0.10)  # 95 % of the way along five sorted values: index 3.8


def test_only_the_seeds_that_were_asked_for_count(text_run):
    result = evaluate(text_run, **LIMITS, **PICTURELESS, seeds=range(2, 100))
    assert (result["n"], result["copies"], result["truth_copies"], result["top1"]) == (3, (1, 3), (1, 3), 0.81)
    assert result["by_cause"][PLANTED]["copies"] == Share(0, 1)


def test_causes_are_told_apart(text_run):
    result = evaluate(text_run, **LIMITS, **PICTURELESS)
    counts = {
        PLANTED: {"copies": (2, 3), "judge_copies": (2, 3), "planted_copies": (1, 3), "truth_copies": (2, 3)},
        "ordinary": {"copies": (1, 2), "judge_copies": (0, 2), "planted_copies": (0, 2), "truth_copies": (0, 2)},
    }
    assert result["by_cause"] == {PLANTED: {"n": 3} | counts[PLANTED], "ordinary": {"n": 2} | counts["ordinary"]}


def test_alignment_guidance_and_time_are_summed_up(text_run):
    result = evaluate(text_run, **LIMITS, **PICTURELESS)
    assert result["aligned_ordinary"] == Share(2, 2)
    assert result["aligned_planted"] == Share(2, 3)
    assert result["aligned"] == Share(4, 5)
    assert result["steps_guided"] == pytest.approx(10 / 50)
    assert result["samples_guided"] == Share(3, 5)
    assert result["dropped"] == 1
    assert result["seconds"] == pytest.approx(0.2)


def test_what_the_records_do_not_say_is_none_and_not_zero(tmp_path):
    result = evaluate(run(tmp_path / "run", [row(i, -2.0 + i / 10) for i in range(4)]), **LIMITS, **PICTURELESS)
    for name in ("truth_copies", "planted_copies", "judge_copies", "aligned", "aligned_ordinary", "aligned_planted"):
        assert result[name] is None, name
    assert result["by_cause"] == {}
    assert result["fid"] is None and result["fid_setting"] is None
    assert result["copies"] == Share(0, 4)


def test_truth_known_of_some_samples_is_a_share_of_those(tmp_path):
    rows = [row(0, 0.1, truth=True, cause=PLANTED), row(1, 0.1, cause=PLANTED), row(2, 0.1, truth=False)]
    result = evaluate(run(tmp_path / "run", rows), **LIMITS, **PICTURELESS)
    assert result["truth_copies"] == Share(1, 2)
    assert result["by_cause"][PLANTED]["truth_copies"] == Share(1, 1)


def test_frechet_distance_is_that_of_the_pictures_on_disk(tmp_path):
    folder = run(tmp_path / "run", [row(i, 0.1) for i in range(12)])
    result = evaluate(folder, **LIMITS, extractor=colours(), reference_pictures=REFERENCE, cache_dir=None)
    pixels = (
        torch.stack(
            [torch.from_numpy(np.array(Image.open(records.picture_path(folder, i)))).double() for i in range(12)]
        ).mean((1, 2))
        / 255
    )
    reference = ((REFERENCE + 1) * 127.5).round().double().mean((2, 3)) / 255
    assert result["fid"] == pytest.approx(frechet_distance(*moments(pixels), *moments(reference)), rel=1e-4)
    setting = {"n": 12, "reference": "20 images", "extractor": "colours", "resize": "none"}
    assert result["fid_setting"] == setting


def test_evaluating_again_sees_no_picture_and_changes_nothing_in_the_run(tmp_path):
    folder = run(tmp_path / "run", [row(i, 0.1) for i in range(12)])
    options = {"extractor": colours(), "reference_pictures": REFERENCE, "cache_dir": tmp_path / "cache"}
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    first = evaluate(folder, **LIMITS, **options)
    assert options["extractor"].network.seen == 12 + 20
    again = evaluate(folder, **LIMITS, **options)
    assert again == first | {"fid": pytest.approx(first["fid"])}
    assert options["extractor"].network.seen == 12 + 20
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    Image.new("RGB", (4, 4)).save(records.picture_path(folder, 3))
    assert evaluate(folder, **LIMITS, **options)["fid"] != first["fid"]
    assert options["extractor"].network.seen == 12 + 20 + 12


def test_matched_distance_leaves_unguided_copies_out(tmp_path):
    unguided = run(tmp_path / "none", [row(i, 0.1, truth=i < 5) for i in range(30)], seed=1)
    guided = run(tmp_path / "full", [row(i, 0.1, truth=False) for i in range(30)], seed=2)
    result = matched(guided, unguided, 0.8, colours(), REFERENCE, None)
    twin = run(tmp_path / "first", [row(i, 0.1) for i in range(25)], seed=2)
    options = {"extractor": colours(), "reference_pictures": REFERENCE, "cache_dir": None}
    assert result["matched_guided"] == pytest.approx(evaluate(twin, **LIMITS, **options)["fid"])
    setting = result["matched_setting"]
    assert (setting["n"], setting["by"], setting["extractor"]) == (25, "truth", "colours")
    assert result["matched_ratio"].mean == pytest.approx(result["matched_guided"] / result["matched_unguided"])


def test_matched_distance_asks_the_similarity_where_there_is_no_truth(tmp_path):
    unguided = run(tmp_path / "none", [row(i, 0.9 if i < 3 else 0.1) for i in range(30)], seed=1)
    result = matched(unguided, unguided, 0.8, colours(), REFERENCE, None)
    assert (result["matched_setting"]["n"], result["matched_setting"]["by"]) == (27, "similarity")


def test_mistakes_are_told_by_run_and_seed(tmp_path):
    with pytest.raises(ValueError, match="empty holds no records"):
        evaluate(tmp_path / "empty", **LIMITS, **PICTURELESS)
    with pytest.raises(ValueError, match="1 samples diverged .* seed 7"):
        evaluate(run(tmp_path / "nan", [row(6, 0.1), row(7, math.nan)]), **LIMITS, **PICTURELESS)
    gone = run(tmp_path / "gone", [row(0, 0.1), row(1, 0.1)])
    records.picture_path(gone, 1).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images are missing, e\.g\. .*1\.png"):
        evaluate(gone, **LIMITS, extractor=colours(), reference_pictures=REFERENCE, cache_dir=None)


def test_thresholds_are_told_as_distance_where_negative():
    line = thresholds_used(0.8, 0.6, -1.4)
    assert line == "copies: similarity > 0.8; strict: similarity > 0.6; judge's copies: nL2 < 1.4"


@pytest.mark.parametrize(
    "module, absent",
    [
        ("amg, experiments.run.records", "torchmetrics pandas scipy hydra lightning"),
        ("amg.metrics", "hydra lightning wandb"),
        ("experiments.run.evaluate", "hydra lightning wandb"),
    ],
)
def test_importing_stays_light(module, absent):
    code = f"import sys, {module}; print([name for name in {absent.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_judges_false_alarms_are_among_samples_that_are_no_copies(tmp_path):
    """By the truth where it is known, whatever the guide says; else by the guide."""
    rows = [
        row(0, 0.9, judge=0.9, truth=True),
        row(1, 0.9, judge=0.9, truth=False),
        row(2, 0.1, judge=0.1, truth=False),
    ]
    known = evaluate(run(tmp_path / "known", rows), 0.5, 0.4, 0.5, None, None, None)
    assert known["judge_novel"] == Share(1, 2)
    guide = evaluate(run(tmp_path / "guide", [one | {"truth": None} for one in rows]), 0.5, 0.4, 0.5, None, None, None)
    assert guide["judge_novel"] == Share(0, 1)
    alone = evaluate(run(tmp_path / "alone", [row(0, 0.9)]), 0.5, 0.4, 0.5, None, None, None)
    assert alone["judge_novel"] is None


def test_where_a_rival_acted_is_unknown_and_not_zero(tmp_path):
    found = evaluate(run(tmp_path / "rival", [row(0, 0.9, steps_guided=None)]), 0.5, 0.4, 0.5, None, None, None)
    assert found["steps_guided"] is None and found["samples_guided"] is None
    amg = evaluate(run(tmp_path / "amg", [row(0, 0.9, steps_guided=4), row(1, 0.1)]), 0.5, 0.4, 0.5, None, None, None)
    assert (amg["steps_guided"], amg["samples_guided"]) == (0.2, Share(1, 2))
