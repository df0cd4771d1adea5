"""The first command of a user of Stable Diffusion, with a tiny model in the place of the real one."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import stable_diffusion
from torch import nn

from amg.models.stable_diffusion import StableDiffusion
from amg.prompts import cause, read_prompts
from amg.worlds import world as worlds
from experiments.cli.main import compose_config, main
from experiments.config.bind import check
from experiments.config.schema import ConfigError
from experiments.run import records
from experiments.run.draw import conditions

QUICK = ["model=sd", "model.source=tiny", "data.size=16", "sampler.steps=1", "metrics.extractor=none", "trainer=cpu"]
OWN = ["similarity.size=null", "similarity.sha256=null"]  # a small descriptor in the place of the published one


def descriptor(file, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 512))
    torch.jit.script(net.eval()).save(file)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with all that model=sd needs: a tiny pipeline, two descriptors, three of the 500 training pictures."""
    monkeypatch.chdir(tmp_path)
    stable_diffusion().save_pretrained("tiny")
    descriptor("sscd_disc_mixup.torchscript.pt", 0)
    descriptor("sscd_disc_large.torchscript.pt", 1)
    folder = Path("data/memorized_laion")
    folder.mkdir(parents=True)
    rows = [{"text": prompt, "url": "u"} for prompt in read_prompts("memorized_laion")]
    for i, row in enumerate(rows[:3]):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        row["file_name"] = f"{i}.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    (folder / "failed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:]))
    return tmp_path


@pytest.mark.slow
def test_the_first_command_draws_the_500_memorized_prompts_once_each(place, capsys):
    assert main(["guidance=full", *QUICK, *OWN, "batch_size=250"]) == 0
    (run_dir,) = Path("runs/run").glob("sd-full-*")
    rows = records.read(run_dir)
    assert rows["prompt"].tolist() == read_prompts("memorized_laion")
    assert Counter(rows["cause"]) == {"verbatim": 112, "template": 388}
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["n_samples"] == 500
    assert manifest["bank"]["note"] == "3 of 500 listed images"
    table = (run_dir / "table.md").read_text()
    for said in ("3 of 500 listed images", "sscd_disc_mixup.torchscript.pt, preprocessing official",
                 "sscd_disc_large.torchscript.pt, preprocessing official"):  # fmt: skip
        assert said in table, table


def test_a_prompt_takes_the_place_of_the_default_ones():
    run = check(compose_config(["model=sd", "prompt='a cat'"]))
    assert (run.prompt, run.prompts, run.n_samples) == ("a cat", None, 1)
    assert check(compose_config(["model=sd", "n_samples=7"])).n_samples == 7
    assert check(compose_config(["model=sd_v2"])).n_samples == 500
    assert check(compose_config(["n_samples=null", "prompt=[owl,bus]"])).n_samples == 2
    assert check(compose_config(["n_samples=null", "labels=[1,2,3]"])).n_samples == 3


def test_each_once_needs_to_know_of_what():
    with pytest.raises(ConfigError, match="n_samples: needs a number here"):
        check(compose_config(["n_samples=null"]))
    with pytest.raises(ConfigError, match="n_samples: needs a number here"):
        check(compose_config(["model=sd", "conditioning=none"]))


@pytest.mark.parametrize(
    "source, said",
    [
        ("bad.txt", r"prompts: bad.txt, line 2: no prompt"),
        ("latin.txt", r"prompts: latin.txt, line 2: not UTF-8: save the file as UTF-8"),
        ("gone.csv", r"prompts: there is no file gone.csv"),
        ("ordinry", r"prompts: 'ordinry' is no file \(.txt, .jsonl, .csv\) and no set"),
    ],
)
def test_a_bad_file_of_prompts_is_told_with_the_other_mistakes(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("a\n\nb\n")
    Path("latin.txt").write_bytes("a\nélan\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=said) as error:
        check(compose_config(["model=sd", f"prompts={source}", "seed=-1"]))
    assert len(error.value.lines) == 2 and error.value.lines[1].startswith("seed=-1")


def test_checking_prompts_encodes_none_and_tells_of_long_ones_once(monkeypatch, recwarn, caplog):
    model = StableDiffusion(stable_diffusion())
    long = [" ".join(letter * 20) for letter in "abc"]
    run = check(compose_config(["model=sd", f"prompt=[{','.join(['x', *long])}]"]))
    monkeypatch.setattr(model, "_encode", None)
    assert len(conditions(run, worlds.of(model))) == 4
    monkeypatch.undo()
    model.encode(long)
    (told,) = [str(w.message) for w in recwarn if "tokens" in str(w.message)]
    assert told.startswith("prompt 1 has 22 tokens of 16: cut off before 'a a") and "(and 2 more of 4 prompts)" in told
    assert not [record for record in caplog.records if "truncated" in record.message]


def test_what_is_known_of_a_prompt():
    memorized = read_prompts("memorized_laion")
    assert [cause(prompt) for prompt in memorized[:2]] == ["verbatim", "template"]
    assert (cause(read_prompts("ordinary_laion")[0]), cause("my own words")) == ("ordinary", "")
