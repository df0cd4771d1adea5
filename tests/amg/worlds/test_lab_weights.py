"""Shipped weights are checked before they are used."""

import pytest

from amg.worlds import lab as module
from amg.worlds.lab import weights, write_sums


@pytest.fixture
def folder(tmp_path):
    part = tmp_path / "net" / "unet"
    part.mkdir(parents=True)
    (part / "weights.bin").write_bytes(b"abc")
    write_sums(tmp_path / "net")
    return tmp_path


def test_sums_are_those_of_sha256sum(folder):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert (folder / "net" / "SHA256SUMS").read_text() == f"{known}  unet/weights.bin\n"
    assert weights("net", folder) == folder / "net"


def test_a_changed_file_is_refused_by_name(folder):
    (folder / "net" / "unet" / "weights.bin").write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"unet/weights\.bin is not the file that was shipped"):
        weights("net", folder)


def test_a_missing_file_is_refused_by_name(folder):
    (folder / "net" / "unet" / "weights.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/weights\.bin is missing"):
        weights("net", folder)


def test_an_unknown_network_is_told_with_those_that_exist(folder):
    with pytest.raises(FileNotFoundError, match=r"no lab weights 'nett' .*shipped: net\)"):
        weights("nett", folder)


def test_every_shipped_network_is_intact_and_all_are_within_40_mib():
    names = [path.parent.name for path in module.FOLDER.glob("*/SHA256SUMS")]
    assert names
    for name in names:
        path = weights(name)
        assert (path / "MODEL_CARD.md").is_file()
        listed = {line.split("  ", 1)[1] for line in (path / "SHA256SUMS").read_text().splitlines()}
        present = {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
        assert present - listed == {"SHA256SUMS", "MODEL_CARD.md"}
    total = sum(file.stat().st_size for file in module.FOLDER.rglob("*") if file.is_file())
    assert total <= 40 * 2**20


def test_the_lab_has_no_other_names():
    import amg.worlds

    with pytest.raises(AttributeError, match="no attribute 'lab_sdd'"):
        _ = amg.worlds.lab_sdd
