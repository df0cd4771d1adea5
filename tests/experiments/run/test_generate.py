"""A run end to end in the closed-form world: what it leaves on disk, and that it depends on seeds alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from amg.guidance import AntiMemorizationGuidance, Chain, Guidance
from amg.guidance.rivals.somepalli import GaussianNoiseInput
from amg.similarity import Match
from amg.step import Step
from amg.thresholds import Constant
from experiments.cli.main import main
from experiments.run import records
from experiments.run.draw import Trace

RUN = Path(__file__).parents[3] / "run.py"
QUICK = ["metrics.extractor=none", "trainer=cpu", "sampler.steps=12", "guidance=full"]
TEXT = "prompts=planted"  # half of these samples are copies unguided, so that the guidance has something to do


@pytest.fixture(autouse=True)
def _below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(RUN), *arguments], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def pixels(folder, n):
    return np.stack([np.asarray(Image.open(records.picture_path(folder, seed))) for seed in range(n)]).astype(int)


def traces(table, name="trace_similarity"):
    return np.stack(table[name].to_numpy())


def test_a_run_leaves_records_pictures_manifest_table_and_report():
    assert main([*QUICK, "n_samples=6", "seed=40", "output_dir=out", "batch_size=4"]) == 0
    table = records.read("out")
    assert list(table.seed) == list(range(40, 46))
    assert set(table.columns) == set(records.SCHEMA.names)
    assert (table.steps == 12).all() and (table.seconds > 0).all()
    assert all(len(t) == 12 for name in ("t", "similarity", "threshold", "flagged") for t in table[f"trace_{name}"])
    assert (table.steps_guided == traces(table, "trace_flagged").sum(1)).all()
    assert (np.diff(traces(table, "trace_t")) < 0).all()
    assert list(table.cause[1::2]) == ["ordinary"] * 3 and "ordinary" not in list(table.cause[::2])
    assert table.label.isna().all() and table.truth.notna().all() and table.aligned.notna().all()
    sizes = {Image.open(f"out/pictures/{seed}.png").size for seed in table.seed}
    assert sizes == {(32, 32)}
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["metrics"]["n"] == 6
    assert all(Path("out", name).is_file() for name in ("config.yaml", "table.md", "table.csv", "report.html"))


def test_class_labels_and_unconditional_samples_are_recorded_as_such():
    assert main([*QUICK[:3], "n_samples=4", "labels=[3,0]", "output_dir=labels"]) == 0
    assert main([*QUICK[:3], "n_samples=2", "conditioning=none", "output_dir=plain"]) == 0
    labels, plain = records.read("labels"), records.read("plain")
    assert list(labels.label) == [3, 0, 3, 0] and labels.prompt.isna().all()
    assert plain.label.isna().all() and plain.prompt.isna().all() and list(plain.cause) == ["", ""]


def test_the_guided_gradient_works_inside_trainer_predict():
    assert main([*QUICK, TEXT, "n_samples=12", "output_dir=out"]) == 0
    table = records.read("out")
    # at the first step, where x̂0 says nothing yet, G_sim is left out by design
    guided = table[[any(flagged[1:]) for flagged in table.trace_flagged]]
    assert len(guided) >= 3
    assert (guided.norm_sim > 0).all() and (guided.norm_spe > 0).any()
    assert (table.dropped == 0).all()
    assert (table[table.steps_guided == 0].norm_sim == 0).all()


def test_watching_alone_guides_nothing_but_still_has_its_trace():
    assert main([*QUICK[:3], "guidance=none", TEXT, "threshold=constant", "n_samples=12", "output_dir=out"]) == 0
    table = records.read("out")
    assert (table.steps_guided == 0).all() and (table[["norm_spe", "norm_dup", "norm_sim"]] == 0).all(axis=None)
    assert traces(table, "trace_flagged").any(), "planted captions must rise above λ_t somewhere"


def trace_of(guidance, looks):
    """The trace of two steps of two samples whose similarity is the mean of x̂0; `looks` lists the comparisons."""

    def similarity(images):
        looks.append(len(images))
        return Match(images.mean((1, 2, 3)), torch.tensor([0, 0]))

    parts = SimpleNamespace(guidance=guidance(similarity), similarity=similarity, threshold=Constant(0.5), looks=None)
    trace, state = Trace(parts, [0, 1], [None, None]), None
    for values in ([0.875, 0.125], [0.875, 0.625]):
        x0, half = torch.tensor(values)[:, None, None, None].expand(2, 3, 4, 4), torch.full((2,), 0.5)
        step = Step(x0, half, 0, half, x0, x0, None, 1.0, (0, 1), x0, None, lambda x0: x0)
        _, state = parts.guidance(step, state)
        trace(step, state)
    return trace


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (lambda similarity: Guidance(), [0, 0]),
        (lambda similarity: GaussianNoiseInput(), [None, None]),
        (lambda similarity: AntiMemorizationGuidance(similarity, Constant(0.5)), [2, 1]),
        (lambda similarity: Chain([GaussianNoiseInput(), AntiMemorizationGuidance(similarity, Constant(0.5))]), [2, 1]),
        (lambda similarity: Chain([AntiMemorizationGuidance(similarity, Constant(c)) for c in (0.7, 0.3)]), [2, 1]),
    ],
    ids=["none", "rival", "amg", "rival and amg", "two amgs"],
)
def test_steps_guided_are_known_of_amg_and_of_plain_sampling_only(guidance, expected):
    trace = trace_of(guidance, [])
    assert trace.steps_guided() == expected
    assert trace.of("similarity").shape == (2, 2) and trace.of("spe").eq(0).all()


@pytest.mark.parametrize(
    "guidance",
    [lambda similarity: Guidance(), lambda similarity: AntiMemorizationGuidance(similarity, Constant(0.5))],
    ids=["none", "amg"],
)
def test_each_step_is_compared_once(guidance):
    looks = []
    trace = trace_of(guidance, looks)
    assert looks == [2, 2]
    torch.testing.assert_close(trace.of("similarity"), torch.tensor([[0.875, 0.875], [0.125, 0.625]]))
    assert trace.of("flagged").tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float64", 1e-6)])
def test_a_sample_does_not_depend_on_its_batch(dtype, bound):
    """float64 by the world's own keyword; fp32 sums in another order for another batch size."""
    for size in (1, 7):
        assert (
            main([*QUICK, TEXT, f"model.dtype={dtype}", "n_samples=9", f"batch_size={size}", f"output_dir=b{size}"])
            == 0
        )
    one, seven = records.read("b1"), records.read("b7")
    assert list(one.seed) == list(seven.seed) and (one.steps_guided > 0).any()
    for name in ("similarity", "judge", "norm_sim", "norm_spe", "norm_dup"):
        np.testing.assert_allclose(one[name], seven[name], rtol=bound, atol=bound)
    np.testing.assert_allclose(traces(one), traces(seven), atol=bound)
    assert (one.steps_guided == seven.steps_guided).all() and (one.nearest_index == seven.nearest_index).all()
    assert abs(pixels("b1", 9) - pixels("b7", 9)).max() <= 1


def test_a_finished_run_draws_nothing_and_says_so(capsys):
    command = [*QUICK, "n_samples=3", "output_dir=out"]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.p*") if "figures" not in path.parts}
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing left to draw" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.p*") if "figures" not in path.parts}
    assert after == before and len(before) == 4


def test_more_samples_of_the_same_run_draw_only_the_new_seeds():
    assert main([*QUICK, "n_samples=3", "output_dir=out"]) == 0
    before = Path("out/pictures/1.png").stat().st_mtime_ns
    assert main([*QUICK, "n_samples=5", "output_dir=out"]) == 0
    assert list(records.read("out").seed) == [0, 1, 2, 3, 4]
    assert Path("out/pictures/1.png").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_killed_midway_resumes_and_leaves_what_is_done_untouched():
    command = [*QUICK, "n_samples=40", "batch_size=1", "output_dir=out"]
    running = start(*command)
    deadline = time.monotonic() + 120
    while len(list(Path("out/records").glob("[!.]*.parquet"))) < 3:
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = records.seeds_done("out")
    assert 3 <= len(done) < 40
    before = {path: path.stat().st_mtime_ns for path in Path("out/records").glob("[!.]*.parquet")}
    before |= {path: path.stat().st_mtime_ns for path in (records.picture_path("out", seed) for seed in done)}
    assert main(command) == 0
    assert records.seeds_done("out") == set(range(40)) and len(records.read("out")) == 40
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())


@pytest.mark.slow
def test_two_processes_give_the_same_samples_as_one():
    common = ["metrics.extractor=none", "sampler.steps=12", "guidance=full", TEXT, "n_samples=7", "batch_size=2"]
    assert main([*common, "trainer=cpu", "output_dir=one"]) == 0
    two = start(*common, "trainer=cpu", "trainer.devices=2", "trainer.strategy=ddp", "output_dir=two")
    out, told = two.communicate(timeout=240)
    assert two.returncode == 0, told
    one, other = records.read("one"), records.read("two")
    assert list(other.seed) == list(range(7))
    shards = {file.name for file in Path("two/records").glob("*.parquet")}
    assert {"00000000-00000002.parquet", "00000001-00000003.parquet"} <= shards, "each process draws every other seed"
    np.testing.assert_allclose(one.similarity, other.similarity, atol=1e-4)
    assert (one.steps_guided == other.steps_guided).all()
    assert abs(pixels("one", 7) - pixels("two", 7)).max() <= 1
    assert json.loads(Path("two/manifest.json").read_text())["status"] == "done"


def test_a_folder_with_samples_of_another_configuration_is_refused_and_left_alone(capsys):
    assert main([*QUICK, "n_samples=2", "output_dir=out"]) == 0
    before = Path("out/manifest.json").read_text()
    capsys.readouterr()
    assert main([*QUICK[:3], "guidance=sim", "s0=2", "n_samples=2", "output_dir=out"]) == 2
    assert "output_dir=out: holds samples of another s0, guidance" in capsys.readouterr().err
    assert Path("out/manifest.json").read_text() == before


def test_an_unknown_dtype_is_told(capsys):
    assert main([*QUICK, "model.dtype=float63", "output_dir=out"]) == 2
    assert "model: dtype=float63: choose float32" in capsys.readouterr().err
