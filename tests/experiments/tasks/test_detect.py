"""task=detect end to end, from the command line: what it leaves, what it resumes, what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_pipelines import stable_diffusion

from amg.detectors import Norms
from amg.metrics import Share
from amg.models.base import Model
from amg.worlds.world import World
from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.schema import ConfigError
from experiments.tasks.detect import labelled, scored
from experiments.tasks.detect_table import compare, refuse_one_kind

SMALL = ["task=detect", "model.size=16", "task.learn=4", "trainer=cpu", "output_dir=out"]
DETECTORS = ["nearest", "magnitude", "magnitude_all", "anisotropy", "norms", "one_step", "dsm"]


def cells(folder, section, label):
    """Cells of a row of the table's part."""
    lines = (folder / "table.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if section in line)
    line = next(line for line in lines[start:] if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")][1:]


@pytest.mark.slow
def test_a_run_leaves_scores_table_figure_and_report_and_resumes(command, tmp_path):
    code, out, told = command(*SMALL, "sampler.steps=4", "n_samples=24")
    assert code == 0, told
    assert "28 drawn" in out
    folder = tmp_path / "out"
    for name in (
        "figures/roc-1.png",
        "report.html",
        "table.md",
        "table.tex",
        "table.csv",
        "scores.csv",
        "manifest.json",
    ):
        assert (folder / name).stat().st_size > 0
    scores = pd.read_parquet(folder / "scores.parquet")
    assert scores["seed"].tolist() == list(range(24))
    assert scores["cause"].eq("ordinary").tolist() == [i % 2 == 1 for i in range(24)]
    assert scores[[f"score_{name}" for name in DETECTORS]].notna().all(axis=None)
    assert cells(folder, "Is the prompt planted? One image", "magnitude")[2] == "2"
    assert cells(folder, "Is the prompt planted? One image", "magnitude_all")[2] == "8"  # two calls at each of 4 steps
    assert cells(folder, "Is the prompt planted? One image", "norms")[2] == "8"
    assert len(cells(folder, "Is the prompt planted? One image", "*magnitude, paper*")) == 4

    code, out, _ = command(*SMALL, "sampler.steps=4", "n_samples=24")
    assert code == 0 and "nothing left to draw" in out
    for seed in range(24):  # a run that was killed
        (folder / "pictures" / f"{seed}.png").unlink()
    code, out, _ = command(*SMALL, "sampler.steps=4", "n_samples=24", "batch_size=5")
    assert code == 0 and "24 drawn" in out
    again = pd.read_parquet(folder / "scores.parquet")
    for name in DETECTORS:
        assert np.allclose(again[f"score_{name}"], scores[f"score_{name}"], rtol=1e-4), name
    code, out, _ = command(*SMALL, "sampler.steps=4", "n_samples=26")
    assert code == 0 and "2 drawn" in out
    code, _, told = command(*SMALL, "sampler.steps=4", "n_samples=24", "detector=norms")
    assert code == 2 and "another detector" in told


@pytest.mark.slow
def test_without_prompts_only_copies_are_the_truth_and_text_detectors_are_na(command, tmp_path):
    # a third of p(x) is planted, so that a few samples hold both kinds
    world = ["model.planted_weight=0.3", "model.caption_weight=0.8"]
    code, out, told = command(*SMALL, *world, "sampler.steps=8", "conditioning=none", "s0=1", "n_samples=16")
    assert code == 0, told
    for name in ("magnitude", "magnitude_all"):
        assert f"n/a: detector={name}: looks at what the prompt changes" in " ".join(out.split())
    assert set(cells(tmp_path / "out", "Is this sample a copy?", "anisotropy")) == {"n/a"}
    assert cells(tmp_path / "out", "Is this sample a copy?", "one_step")[2] == "1"
    assert "planted?" not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
def test_a_model_without_planted_prompts_takes_two_sets_in_turn_and_its_judge(command, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "tiny")
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        noise = torch.randint(0, 255, (16, 16, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a b")
    (tmp_path / "copied.txt").write_text("a b\nc d\n")
    (tmp_path / "others.txt").write_text("e f\ng h\ni j\n")
    code, _, told = command(
        "task=detect", "model=local", "model.source=tiny", "data.path=pictures", "data.size=16", "similarity=nl2",
        "similarity@judge=pca", "judge.copy=2", "threshold=always", "prompts=copied.txt", "task.ordinary=others.txt",
        "task.learn=3", "sampler.steps=3", "n_samples=10", "trainer=cpu", "output_dir=out",
    )  # fmt: skip
    assert code == 0, told
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores["prompt"].tolist() == ["a b", "e f", "c d", "g h", "i j"] * 2
    assert scores["cause"].tolist() == ["memorized", "ordinary", "memorized", "ordinary", "ordinary"] * 2
    sections = json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"]
    assert sections["Is the prompt planted? Mean of 2 images"]["magnitude"]["tpr"]["n"] == 2
    assert "the judge, pca, says so" in (tmp_path / "out" / "table.md").read_text()


class NoText(Model):
    """A model that brings no prompts of its own."""

    def encode(self, conditions):
        return None


NO_TRUTH = World(NoText())


def test_prompts_that_are_in_both_sets_are_refused():
    run = check(compose_config(["task=detect", "model=local", "++model.source=x", "++data.path=x"]))
    with pytest.raises(ConfigError, match="prompts=ordinary_laion: 500 of these prompts are ordinary ones too"):
        labelled(run, NO_TRUTH, "ordinary_laion")
    with pytest.raises(ConfigError, match="task.ordinary: prompts: there is no file gone.txt"):
        labelled(run, NO_TRUTH, "gone.txt")


def test_the_laions_sets_are_taken_in_turn():
    run = check(compose_config(["task=detect", "model=sd", "++data.path=x"]))
    prompts, causes = labelled(run, NO_TRUTH, "ordinary_laion")
    assert len(prompts) == 1000 and causes == ["memorized", "ordinary"] * 500


def frame(**columns):
    n = len(columns["prompt"])
    given = {"seed": range(n), "copy": [False] * n, "seconds_magnitude": [0.5] * n, "calls_magnitude": [2] * n}
    return pd.DataFrame(given | columns).astype({"copy": bool})


def test_parts_of_the_table_from_scores_made_by_hand():
    scores = frame(
        prompt=["a", "b", "c", "d"] * 2,
        cause=["specific prompt", "ordinary", "specific prompt", "ordinary"] * 2,
        score_magnitude=[4.0, 1.0, 0.0, 3.0, 6.0, 1.0, 9.0, 5.0],
        copy=[True] + [False] * 7,
    )
    one, mean, copy = compare(scores)
    # planted 4 0 6 9 against 1 3 1 5: 3 + 0 + 4 + 4 of 16 pairs; means 5, 4.5 against 1, 4; the copy, 4, against seven
    assert one.metrics["magnitude"]["auc"].value == pytest.approx(11 / 16)
    assert mean.metrics["magnitude"]["auc"].value == 1 and mean.title == "Is the prompt planted? Mean of 2 images"
    assert copy.metrics["magnitude"]["auc"].value == pytest.approx(4 / 7)
    assert (one.metrics["magnitude"]["tpr"], one.ordinary) == (Share(2, 4), 4)
    assert (one.metrics["magnitude"]["calls"], mean.metrics["magnitude"]["calls"]) == (2, 4)
    assert (one.metrics["magnitude"]["seconds"], mean.metrics["magnitude"]["seconds"]) == (0.5, 1.0)


def test_the_interval_counts_each_prompt_once():
    base = {"cause": ["specific prompt", "ordinary"] * 2, "score_magnitude": [3.0, 1.0, 2.0, 2.5]}
    once = frame(prompt=["a", "b", "c", "d"], **base)
    (single, *_), (double, *_) = (compare(pd.concat([once] * times, ignore_index=True)) for times in (1, 5))
    assert single.metrics["magnitude"]["auc"] == pytest.approx(double.metrics["magnitude"]["auc"])


def test_ordinary_chains_that_came_out_as_copies_are_not_learned_on():
    run = check(compose_config(["task=detect", "sampler.steps=1"]))
    rows = pd.DataFrame(
        {
            "seed": range(5),
            "held_out": [True, True, True, True, False],
            "copy": [False, False, False, True, False],
            "seen_norms": [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [1000.0, 1000.0], [5.0, 50.0]],
        }
    )
    scores, learned = scored(run, {"norms": Norms()}, rows)
    assert learned == 3 and scores["score_norms"].tolist() == pytest.approx([3.0])
    rows["copy"] = [False, True, True, True, False]
    with pytest.raises(ConfigError, match="task.learn: 3 of 4 ordinary trajectories came out as copies"):
        scored(run, {"norms": Norms()}, rows)


def test_samples_of_one_kind_are_refused():
    scores = frame(prompt=["a", "b"], cause=["ordinary"] * 2, score_magnitude=[1.0, 2.0])
    with pytest.raises(ConfigError, match="every prompt and every sample is of one kind"):
        refuse_one_kind(compare(scores), scores)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guidance=full"], "guidance=full: task=detect scores unguided sampling"),
        (["detector=[]"], "detector: choose at least one"),
        (["task.learn=1"], "task.learn must be a whole number >= 2, got 1"),
        (["conditioning=none", "detector=magnitude"], "detector=magnitude: looks at what the prompt changes"),
        (["sampler.steps=2"], "sampler.steps=2: Anisotropy looks at places (0, -3)"),
        (["s0=1", "detector=magnitude", "detector.magnitude.whole=true"], "detector.magnitude: at s0=1"),
        (["prompts=planted", "detector=norms"], "task.learn: the chosen detectors learn on ordinary prompts"),
    ],
)
def test_bad_input_exits_with_2_before_anything_is_drawn(command, tmp_path, arguments, said):
    code, _, told = command(*SMALL, *arguments)
    assert code == 2 and said in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()
