"""The benchmark of a guarded step: its smallest run, and the operations that it counts, which no machine changes."""

import pytest

from benchmarks import bench_guard


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def test_operations_of_a_guarded_step_of_larger_models(capsys):
    bench_guard.count()
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith(("| SDXL", "| SD3"))]
    assert len(rows) == 2
    for row in rows:
        plain, full, small, *ratios = map(float, row[1:-1])
        assert full > 5 * small and plain > 2
        for ratio, budget in zip(ratios, bench_guard.BUDGETS.values(), strict=True):
            assert 1 < ratio <= budget


@pytest.mark.slow
def test_the_smallest_run_has_a_row_for_each_case(capsys):
    bench_guard.main(["--size", "small", "--steps", "1", "--cases", "watched, every step", "flagged, full AMG"])
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    timed = {row[0]: float(row[3]) for row in rows if row[0] in bench_guard.CASES}
    assert list(timed) == ["plain", "watched, every step", "flagged, full AMG"] and timed["plain"] == 1
