"""Records survive what happens to long runs: kills, gaps, wrong rows."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic_runs import record

from amg.metrics.extractors import read_picture
from experiments.run import records

TESTS = Path(__file__).parents[2]
TRACE = {"trace_t": [1.0, 0.5, 0.0], "trace_flagged": [False, True, False]}


def row(seed, **changes):
    return record(seed, **{"prompt": "owl", "similarity": 0.25, **TRACE, **changes})


def draw(run_dir, seed):
    from PIL import Image

    path = records.picture_path(run_dir, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (seed, 0, 255)).save(path)
    return path


def test_what_was_appended_is_read_back_in_order_of_seeds(tmp_path):
    shard = records.append(tmp_path, [row(19), row(12, similarity=0.75)])
    records.append(tmp_path, [row(3, trace_t=[])])
    assert shard == tmp_path / "records" / "00000012-00000019.parquet"
    frame = records.read(tmp_path)
    assert frame["seed"].tolist() == [3, 12, 19]
    assert frame["similarity"].tolist() == [0.25, 0.75, 0.25]
    assert [list(trace) for trace in frame["trace_t"]] == [[], [1.0, 0.5, 0.0], [1.0, 0.5, 0.0]]
    assert list(frame["trace_flagged"][1]) == [False, True, False]
    assert list(frame.columns) == records.SCHEMA.names


def test_null_and_false_stay_apart(tmp_path):
    changes = [{"truth": None, "label": 7, "prompt": None}, {"truth": False}, {"truth": True}]
    records.append(tmp_path, [row(i, **change) for i, change in enumerate(changes)])
    frame = records.read(tmp_path)
    assert frame["truth"].isna().tolist() == [True, False, False]
    assert frame["truth"].dropna().tolist() == [False, True]
    assert frame["label"][0] == 7 and isinstance(frame["label"][0].item(), int)
    assert frame["prompt"].isna().tolist() == [True, False, False]


def test_tensors_become_numbers_and_lists(tmp_path):
    values = row(torch.tensor(5), similarity=torch.tensor(0.5), trace_flagged=torch.tensor([True, False]))
    records.append(tmp_path, [values])
    frame = records.read(tmp_path)
    assert (frame["seed"][0], frame["similarity"][0]) == (5, 0.5)
    assert list(frame["trace_flagged"][0]) == [True, False]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.pop("judge"), "missing column judge"),
        (lambda r: r.update(sigma=1.0), "unknown column sigma"),
        (lambda r: r.update(similarity=None), "column similarity is null"),
        (lambda r: r.update(steps="many"), "column steps must hold int64"),
        (lambda r: r.update(trace_t=0.5), "column trace_t must hold list"),
    ],
)
def test_a_wrong_row_is_refused_by_the_name_of_its_column_and_writes_nothing(tmp_path, change, message):
    bad = row(1)
    change(bad)
    with pytest.raises(ValueError, match=message):
        records.append(tmp_path, [row(0), bad])
    assert not list(tmp_path.rglob("*.*"))


def test_an_empty_run_has_the_columns_and_no_rows(tmp_path):
    assert records.seeds_done(tmp_path) == set()
    frame = records.read(tmp_path)
    assert len(frame) == 0 and list(frame.columns) == records.SCHEMA.names


def test_a_seed_counts_as_done_only_with_its_row_and_its_whole_picture(tmp_path):
    records.append(tmp_path, [row(seed) for seed in (1, 2, 3)])
    for seed in (1, 3, 4):
        draw(tmp_path, seed)
    whole = draw(tmp_path, 3).read_bytes()
    records.picture_path(tmp_path, 3).write_bytes(whole[:-6])
    assert records.seeds_done(tmp_path) == {1}
    assert read_picture(records.picture_path(tmp_path, 1))[2].unique().tolist() == [1.0]


def test_a_truncated_shard_is_told_in_one_line_and_its_samples_are_missing(tmp_path, caplog):
    whole = records.append(tmp_path, [row(seed) for seed in range(4)])
    half = records.append(tmp_path, [row(seed) for seed in range(4, 8)])
    for seed in range(8):
        draw(tmp_path, seed)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        assert records.read(tmp_path)["seed"].tolist() == [0, 1, 2, 3]
    assert len(caplog.records) == 1 and half.name in caplog.text and len(caplog.text.splitlines()) == 1
    assert records.seeds_done(tmp_path) == {0, 1, 2, 3}
    again = records.append(tmp_path, [row(seed) for seed in range(4, 8)])
    assert again not in (whole, half)
    assert records.seeds_done(tmp_path) == set(range(8))


def test_of_two_rows_of_one_seed_the_later_is_kept_and_no_shard_is_overwritten(tmp_path):
    first = records.append(tmp_path, [row(seed, similarity=0.1) for seed in (1, 2, 3)])
    second = records.append(tmp_path, [row(seed, similarity=0.2) for seed in (1, 3)])  # same first and last seed
    os.utime(first, ns=(1, 1))
    os.utime(second, ns=(2, 2))
    assert first != second and first.exists()
    frame = records.read(tmp_path)
    assert frame["seed"].tolist() == [1, 2, 3]
    assert frame["similarity"].tolist() == [0.2, 0.1, 0.2]


def test_a_shard_of_other_columns_is_an_error_that_names_them(tmp_path):
    shard = records.append(tmp_path, [row(0)])
    pd.read_parquet(shard).rename(columns={"judge": "juror"}).to_parquet(shard)
    with pytest.raises(ValueError, match="00000000-00000000.parquet .* judge, juror"):
        records.read(tmp_path)


def test_kill_9_leaves_only_whole_shards(tmp_path):
    code = f"""
import sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent)]!r}
from synthetic_runs import record
from experiments.run import records
for i in range(100_000):
    records.append({str(tmp_path)!r}, [record(64 * i + j) for j in range(64)])
    print(i, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    last = max([last, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    seeds = records.read(tmp_path)["seed"].tolist()
    # the shard in flight may have landed before its line was printed
    assert seeds in (list(range(64 * (last + 1))), list(range(64 * (last + 2))))
