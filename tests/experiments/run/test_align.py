"""Text alignment of a run's pictures: by hand, by a tiny CLIP, and where there are no weights."""

import math

import pytest
import torch
from synthetic_runs import save, write_run
from tiny_pipelines import tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from amg.metrics import Mean
from amg.metrics.alignment import CLIPScorer
from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.run import records
from experiments.run.measure import NAMES, aligned, gained, scores
from experiments.tables.table import render


class Colour:
    """A text is a colour; a picture is its mean colour."""

    seen = 0

    def image(self, pictures):
        self.seen += len(pictures)
        return (pictures.mean((2, 3)) + 1) / 2

    def text(self, texts):
        return torch.stack([torch.eye(3)["red green blue".split().index(text)] for text in texts])


def coloured(folder, *rows):
    """rows: (prompt, cause, colour in [0, 1])."""
    write_run(folder, "none", set(), n=len(rows))
    frame = records.read(folder)
    for file in (folder / "records").glob("*.parquet"):
        file.unlink()
    table = frame.to_dict("records")
    for row, (prompt, cause, colour) in zip(table, rows, strict=True):
        row |= {"prompt": prompt, "cause": cause, "label": None}
        pixels = torch.tensor(colour).view(3, 1, 1).expand(3, 8, 8) * 2 - 1
        save(pixels, records.picture_path(folder, row["seed"]))
    records.append(folder, table)
    return folder


def test_alignment_is_the_mean_cosine_of_each_picture_with_its_own_prompt(tmp_path):
    red, both = (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)
    rows = [("red", "ordinary", red), ("green", "ordinary", both), ("red", "verbatim", both), ("blue", "", red)]
    found = scores(Colour(), "colours", coloured(tmp_path / "run", *rows), None, range(4))
    half = 100 / math.sqrt(2)
    assert found["alignment_ordinary"].mean == pytest.approx((100 + half) / 2, abs=0.3)  # 8-bit pictures
    assert found["alignment_planted"].mean == pytest.approx(half, abs=0.3)
    assert found["alignment"].mean == pytest.approx((100 + 2 * half) / 4, abs=0.3)
    assert (found["alignment"].n, found["alignment_by"]) == (4, "colours")
    some = scores(Colour(), "colours", tmp_path / "run", None, range(1, 3))
    assert some["alignment"].n == 2 and some["alignment"].mean == pytest.approx(half, abs=0.3)


def test_what_a_guidance_changed_is_compared_seed_by_seed(tmp_path):
    """Of 100 to 100/√2 and 0 to 0 on ordinary prompts; one planted sample alone has no standard error."""
    red, both = (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)
    none = coloured(tmp_path / "none", ("red", "ordinary", red), ("blue", "ordinary", red), ("red", "verbatim", both))
    full = coloured(tmp_path / "full", ("red", "ordinary", both), ("blue", "ordinary", both), ("red", "verbatim", red))
    found = gained(Colour(), "colours", full, none, None, range(3))
    lost = 100 - 100 / math.sqrt(2)
    assert found["alignment_change_ordinary"].mean == pytest.approx(-lost / 2, abs=0.3)
    assert found["alignment_change_ordinary"].se == pytest.approx(lost / 2, abs=0.3)  # s = lost/√2, over √2
    assert found["alignment_change"].mean == pytest.approx(0, abs=0.3)
    assert "alignment_change_planted" not in found


def test_pictures_are_embedded_once(tmp_path):
    run, scorer = coloured(tmp_path / "run", ("red", "", (1.0, 0.0, 0.0)), ("red", "", (0.0, 1.0, 0.0))), Colour()
    first = scores(scorer, "colours", run, tmp_path / "cache", range(2))
    assert scores(scorer, "colours", run, tmp_path / "cache", range(2)) == first and scorer.seen == 2
    assert first["alignment_ordinary"] is None and first["alignment_planted"] is None


def test_without_prompts_scorer_or_weights_nothing_is_measured_and_the_last_is_said(tmp_path):
    for arguments in (["conditioning=none"], ["metrics.scorer=none"]):
        assert aligned(check(compose_config(arguments)), tmp_path, None, "cpu") == dict.fromkeys(NAMES)
    run = check(compose_config([f"metrics.scorer={tmp_path}/none"]))
    found = aligned(run, tmp_path, None, "cpu")
    assert found["alignment"] is None and "hf download" in found["alignment_missing"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    tokens, small = (
        tokenizer(),
        {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2},
    )
    ends = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=len(tokens), max_position_embeddings=16, **small, **ends).to_dict(),
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **small).to_dict(),
        projection_dim=12,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return model, folder


def test_clip_embeds_as_transformers_own_model_does(clip):
    model, folder = clip
    scorer, texts = CLIPScorer(folder), ["a cat", "two dogs of a kind", " ".join("abcdefghijklmnopqrstuvwxyz")]
    tokens = tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    pictures = torch.rand(3, 3, 16, 16) * 2 - 1
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = ((pictures + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    images, words = (torch.nn.functional.normalize(x, dim=1) for x in (scorer.image(pictures), scorer.text(texts)))
    torch.testing.assert_close(images @ words.T, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        scorer.text(texts[:1])[0], scorer.text(texts)[0], atol=1e-5, rtol=1e-4
    )  # padding is none
    assert scorer.image(torch.rand(2, 3, 40, 24)).shape == scorer.text(["a", "b"]).shape == (2, 12)


def test_clip_sees_the_centre_of_a_wide_picture(clip):
    scorer, square = CLIPScorer(clip[1]), torch.rand(1, 3, 16, 16) * 2 - 1
    wide = torch.cat([torch.full((1, 3, 16, 4), 1.0), square, torch.full((1, 3, 16, 4), -1.0)], dim=3)
    torch.testing.assert_close(scorer.image(wide), scorer.image(square))


def test_a_table_names_the_scorer_or_why_there_is_none():
    spec = {"title": "t", "rows": [{"row": "a", "label": "a"}], "columns": ["alignment"]}
    table = render(spec, {"a": {"n": 1, "alignment": Mean(31.25, 9, 0.5), "alignment_by": "CLIP tiny"}})
    assert table.lines[0].cells == ("31.2",)
    assert table.notes == ("Alignment: 100 · cosine of image and prompt, by CLIP tiny.",)
    missing = render(spec, {"a": {"n": 1, "alignment": None, "notes": ["Alignment is not measured: no CLIP."]}})
    assert missing.lines[0].cells == ("–",) and missing.notes == ("Alignment is not measured: no CLIP.",)
