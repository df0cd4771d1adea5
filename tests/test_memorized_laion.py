"""The bank of what a download left: captions by prompt, how many of the list there are, and the ways on without any."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from amg.bank.images import BankNote
from amg.bank.sources.manifest import Entry, Manifest
from amg.bank.sources.memorized_laion import memorized_laion_bank
from experiments.cli import main


def save(folder, name, value, size=(6, 4)):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(folder / name)
    return (folder / name).stat().st_size


def downloaded(folder, *rows, total=5):
    """rows: (prompt, status, file, grey value)."""
    manifest = Manifest(folder)
    manifest.begin(total)
    for prompt, status, file, value in rows:
        size = save(folder, file, value) if file else 0
        manifest.add(Entry(prompt, f"https://example.org/{prompt}", status, file=file, bytes=size))
    return manifest


def test_pictures_take_their_prompts_as_captions_and_the_bank_says_how_many_of_the_list_it_has(tmp_path):
    rows = [("b cat", "done", "00001.png", 255), ("a dog", "gone", "", 0), ("a sea", "done", "00000.png", 0)]
    downloaded(tmp_path / "laion", *rows)
    bank = memorized_laion_bank(tmp_path / "laion", size=2)
    assert bank.captions == ["a sea", "b cat"]  # in the order of the list
    assert bank.images[:, 0, 0, 0].tolist() == [-1.0, 1.0] and bank.images.shape[2:] == (2, 2)
    assert bank.note == "training pictures of 2 of 5 memorized prompts"


def test_the_last_line_of_a_prompt_counts_and_a_half_written_one_is_none(tmp_path):
    manifest = downloaded(tmp_path, ("cat", "timeout", "", 0), ("cat", "done", "0.png", 51), ("dog", "timeout", "", 0))
    with manifest.path.open("a") as file:
        file.write('{"prompt": "dog", "url": "u", "sta')
    total, entries = manifest.read()
    assert (total, {prompt: entry.status for (prompt, _), entry in entries.items()}) == (
        5,
        {"cat": "done", "dog": "timeout"},
    )
    manifest.begin(6)
    manifest.add(Entry("dog", "https://example.org/dog", "gone"))
    assert manifest.read()[0] == 6 and manifest.read()[1]["dog", "https://example.org/dog"].status == "gone"


def test_a_bad_line_is_named_by_its_number(tmp_path):
    manifest = downloaded(tmp_path, ("cat", "done", "0.png", 51))
    manifest.path.write_text('{"total": 5}\n[]\n')
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 2: no entry"):
        manifest.read()


def test_a_picture_that_changed_vanished_or_lies_elsewhere_is_not_there(tmp_path):
    folder = tmp_path / "laion"
    manifest = downloaded(folder, *[(name, "done", f"{name}.png", 9) for name in ("kept", "cut", "gone")])
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-1])
    (folder / "gone.png").unlink()
    size = save(tmp_path, "secret.png", 9)
    manifest.add(Entry("stray", "u", "done", file="../secret.png", bytes=size))
    bank = memorized_laion_bank(folder, size=2)
    assert bank.captions == ["kept"] and bank.note.startswith("training pictures of 1 of 5")


def test_unreadable_pictures_are_left_out_and_counted(tmp_path):
    manifest = downloaded(tmp_path, ("cat", "done", "0.png", 51))
    (tmp_path / "1.png").write_bytes(b"no picture")
    manifest.add(Entry("dog", "u", "done", file="1.png", bytes=10))
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png")
    (tmp_path / "2.png").write_bytes(bomb.getvalue())
    manifest.add(Entry("sea", "u", "done", file="2.png", bytes=len(bomb.getvalue())))
    said = r"2 of 3 images cannot be read.*: 1.png \(UnidentifiedImageError\), 2.png \(DecompressionBombError\)"
    with pytest.warns(BankNote, match=said):
        assert memorized_laion_bank(tmp_path, size=2).captions == ["cat"]


def test_repeats_of_a_picture_share_their_captions(tmp_path):
    downloaded(tmp_path, ("cat", "done", "0.png", 51), ("tom", "done", "1.png", 51))
    bank = memorized_laion_bank(tmp_path, size=2)
    assert bank.all_captions == (("cat", "tom"),) and torch.equal(bank.multiplicity, torch.tensor([2]))


def test_without_pictures_the_first_command_tells_all_that_is_missing_and_the_ways_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert main(["guidance=full", "model=sd", "model.source=nobody/nothing"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in told] == ["model", "data.path", "similarity.path", "judge.path"]
    for way in ("task=download", "data=folder data.path=", "model=closed_form"):
        assert way in told[1]
    assert list(tmp_path.iterdir()) == []
