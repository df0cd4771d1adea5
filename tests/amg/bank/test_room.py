"""Memory that a bank may take: of the machine, or of the container or job that the process runs in."""

from types import SimpleNamespace

import pytest

from amg.bank import room


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """A machine of 1 GB and a job in a control group of its own."""

    def limit(**limits):
        for place, most in limits.items():
            folder = tmp_path / place.replace("_", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{most}\n")
            (folder / "memory.current").write_text("300000\n")
            (folder / "memory.stat").write_text("anon 100000\ninactive_file 200000\n")

    monkeypatch.setattr(room, "CGROUPS", tmp_path)
    monkeypatch.setattr(room, "OWN", tmp_path / "own")
    monkeypatch.setattr("amg.bank.room.psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    (tmp_path / "own").write_text("0::/slice/job\n")
    return limit


def test_without_a_limit_the_machine_counts(limited):
    assert room.free() == 10**9
    limited(slice_job="max")
    assert room.free() == 10**9


def test_the_smallest_limit_above_counts_less_what_is_taken_and_cannot_be_dropped(limited):
    limited(slice_job="2000000000", slice="900000")
    assert room.free() == 800_000
    limited(slice_job="500000")
    assert room.free() == 400_000
    with pytest.raises(ValueError, match=r"a bank of 100 images of 32×32 pixels needs 0.0 GB"):
        room.check_room(100, 32, 32)
