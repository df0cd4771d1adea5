"""Prompts from whatever a user has."""

import csv
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import amg.prompts
from amg import TrainingBank
from amg.prompts import read_addresses, read_prompts
from amg.prompts.text_files import CAPTION_COLUMNS

FOLDER = Path(amg.prompts.__file__).parent
ROW = {"text": "t", "caption": "c", "prompt": "p", "captions": ["v", "w"]}


def test_the_shipped_sets_are_complete_and_distinct():
    memorized, ordinary = read_prompts("memorized_laion"), read_prompts("ordinary_laion")
    assert len(memorized) == len(set(memorized)) == 500 and len(ordinary) == len(set(ordinary)) == 500
    assert not set(memorized) & set(ordinary)
    assert memorized[0] == "The No Limits Business Woman Podcast"
    assert ordinary[1] == "Soaring by Peter Eades"
    with (FOLDER / "memorized_laion_prompts.csv").open(encoding="utf-8") as file:
        kinds = [row["type"] for row in csv.DictReader(file, delimiter=";")]
    assert (kinds.count("VM"), kinds.count("TM")) == (112, 388)
    assert "ml-research@TUDarmstadt" in (FOLDER / "LICENSE").read_text()


def test_a_string_is_one_prompt_and_a_list_is_itself():
    assert read_prompts("a cat, (1/2) & 'more' !") == ["a cat, (1/2) & 'more' !"]
    assert read_prompts(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("p.txt", "a cat\nélan; vital\n\n"),
        ("p.jsonl", '{"caption": "a cat", "index": 3}\n"élan; vital"\n'),
        ("p.csv", 'Prompt,n\na cat,1\n"élan; vital",2\n'),
        ("t.csv", "n\tprompt\n1\ta cat\n2\télan; vital\n"),
        ("q.csv", '﻿;Caption;n\n0;a cat;1\n1;"élan; vital";2\n'),
    ],
)
def test_files_hold_the_same_prompts_in_each_format(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == read_prompts(str(tmp_path / name)) == ["a cat", "élan; vital"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.txt", "a\n\nb\n", "p.txt, line 2: no prompt"),
        ("p.jsonl", '{"text": "a"}\n{"text": \n', "p.jsonl, line 2: no JSON"),
        (
            "p.jsonl",
            '{"text": "a"}\n{"words": "b"}\n',
            "p.jsonl, line 2: no column captions or text or caption or prompt or txt; it has words",
        ),
        ("p.csv", "text\na\n  \n", "p.csv, line 3: no prompt"),
        ("p.csv", "title\na\n", "line 2: no column.*it has title"),
        ("p.txt", "", "holds no prompts"),
        ("p.csv", 'text\na\n"' + "b" * 200_000, "p.csv, line 3: no CSV"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_another_encoding_is_named_by_its_first_line_with_the_mend(tmp_path, name, ends):
    rows = ["prompt", "a cat", "élan vital", "a sea"] if name == "p.csv" else ['"a cat"', '"a dog"', '"élan"']
    (tmp_path / name).write_bytes(ends.join(rows).encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}, line 3: not UTF-8: save the file as UTF-8"):
        read_prompts(tmp_path / name)


def test_a_line_ends_where_editors_end_it(tmp_path):
    (tmp_path / "p.txt").write_bytes("a\r\nb\u2028c\rd".encode())
    (tmp_path / "p.jsonl").write_bytes('"a"\n\n"b\u2028c"\n"d"'.encode())
    assert read_prompts(tmp_path / "p.txt") == read_prompts(tmp_path / "p.jsonl") == ["a", "b\u2028c", "d"]


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.csv").write_text("caption,url\na fox,u\n")
    assert read_prompts("~/p.csv") == ["a fox"] and read_addresses("~/p.csv") == [("a fox", "u")]


def test_what_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file none.txt; sets by name: memorized_laion"):
        read_prompts("none.txt")
    for source, message in (("  ", "prompt 0 must be"), ([], "is empty"), (["a", ""], "prompt 1 must be some text")):
        with pytest.raises(ValueError, match=message):
            read_prompts(source)
    with pytest.raises(ValueError, match="prompts come as .txt, .jsonl, .csv"):
        (tmp_path / "p.doc").write_text("a")
        read_prompts(tmp_path / "p.doc")


def test_a_comma_that_is_not_quoted_cuts_no_prompt_and_no_address(tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na fox\na fox, running, in snow\n")
    with pytest.raises(
        ValueError, match=r"p.csv, line 3: 3 columns where the header has 1 \(quote texts with commas\)"
    ):
        read_prompts(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("caption,url\na fox,http://x.org/a,b.jpg\n")
    with pytest.raises(ValueError, match="line 2: 3 columns where the header has 2"):
        read_addresses(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text('caption; url\n"a fox; red"; http://x.org/a,b.jpg\n')
    assert read_addresses(tmp_path / "p.csv") == [("a fox; red", "http://x.org/a,b.jpg")]


def test_null_is_no_prompt_a_list_is_several_and_a_number_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": ["a", "b"], "url": "u"}\n{"text": null, "caption": "c", "url": "v"}\n')
    assert read_prompts(path) == ["a", "b", "c"]
    assert read_addresses(path) == [("a", "u"), ("b", "u"), ("c", "v")]
    for value, said in (("null", "no prompt"), ("3", r"text is 3 \(int\), expected text")):
        path.write_text(f'{{"text": {value}}}')
        with pytest.raises(ValueError, match=f"p.jsonl, line 1: {said}"):
            read_prompts(path)


@pytest.mark.parametrize("names", [names for n in (1, 2, 3, 4) for names in itertools.permutations(ROW, n)])
def test_a_row_is_captioned_alike_by_folders_parquet_files_and_lists_of_prompts(tmp_path, names):
    row = {name: ROW[name] for name in names}
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    named = {"file_name": "a.png", **row}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(named))
    image = (tmp_path / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [image], **{k: [v] for k, v in row.items()}}), tmp_path / "a.parquet")
    expected = read_prompts(tmp_path / "metadata.jsonl")
    assert expected == next(
        [ROW[name]] if isinstance(ROW[name], str) else ROW[name] for name in CAPTION_COLUMNS if name in row
    )
    for name in (".", "a.parquet"):
        bank = TrainingBank.from_folder(tmp_path / name, cache=None)
        assert list(bank.all_captions[0]) == expected
    plain = {key: value for key, value in named.items() if isinstance(value, str)}
    if len(plain) > 1:
        (tmp_path / "metadata.jsonl").unlink()
        (tmp_path / "metadata.csv").write_text(f"{','.join(plain)}\n{','.join(plain.values())}\n")
        assert TrainingBank.from_folder(tmp_path, cache=None).captions == read_prompts(tmp_path / "metadata.csv")
