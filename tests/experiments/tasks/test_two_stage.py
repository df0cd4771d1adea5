"""Two-stage search: who proposes, who ranks, whose gradient; CLIP's image encoder at toy size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_transforms import get_resize_output_image_size

from amg.bank import TrainingBank
from amg.similarity import DescriptorSimilarity, PCASimilarity, TwoStage
from amg.similarity.clip import CLIP, preprocess
from amg.worlds.drawings import training_images
from amg.worlds.lab import LabDescriptor, LabScorer
from experiments.cli.main import main
from experiments.run import records


@pytest.fixture(scope="module")
def bank():
    return TrainingBank.from_tensors(training_images(32).images[:300])


@pytest.fixture(scope="module")
def lab(bank):
    return LabScorer(bank), LabDescriptor(bank)


@pytest.fixture(scope="module")
def x():
    noise = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (0.8 * training_images(32).images[[3, 50, 120, 400, 500, 600]] + 0.1 * noise).requires_grad_()


def test_with_all_candidates_it_is_the_fine_descriptor_gradient_included(lab, x):
    coarse, fine = lab
    two = TwoStage(coarse, fine, candidates=10_000)
    (a, i), (b, j) = two(x), fine(x)
    assert torch.equal(i, j)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), x)[0] for value in (a, b)))
    assert torch.equal(two.neighbours(x, 20), fine.neighbours(x, 20))
    assert (two.copy, two.strict, two.bank) == (fine.copy, fine.strict, fine.bank)


def test_the_best_of_the_coarse_candidates_by_the_fine_cosine_wins(lab, x):
    coarse, fine = lab
    value, index = TwoStage(coarse, fine, candidates=5)(x)
    with torch.no_grad():
        proposed = (coarse.descriptors(x) @ coarse.descriptors(coarse.bank.pictures[:]).T).topk(5).indices
        cosines = fine.descriptors(x) @ fine.descriptors(fine.bank.pictures[:]).T
        best = cosines.gather(1, proposed).max(1)
    assert torch.equal(index, proposed.gather(1, best.indices[:, None])[:, 0])
    torch.testing.assert_close(value, best.values)
    assert index[:3].tolist() == [3, 50, 120]  # a training picture is its own candidate
    assert torch.equal(TwoStage(coarse, fine, candidates=1)(x).index, coarse(x).index)


def test_more_neighbours_than_candidates_widen_the_search(lab, x):
    near = TwoStage(*lab, candidates=5).neighbours(x, 40)
    assert near.shape == (6, 40) and all(len(set(row)) == 40 for row in near.tolist())


def test_rows_do_not_depend_on_each_other(lab, x):
    two = TwoStage(*lab, candidates=5)
    whole = two(x.detach())
    for i in range(len(x)):
        one = two(x[i : i + 1].detach())
        assert one.index.item() == whole.index[i]
        torch.testing.assert_close(one.value[0], whole.value[i])


def test_what_cannot_be_is_refused(lab):
    coarse, fine = lab
    with pytest.raises(ValueError, match="similarity.candidates must be >= 1, got 0"):
        TwoStage(coarse, fine, 0)
    with pytest.raises(ValueError, match="both stages must search the same bank"):
        TwoStage(PCASimilarity(TrainingBank.from_tensors(training_images(32).images[:9])), fine)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(config).eval()
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    encoder.save_pretrained(folder)
    return folder


SIZES = [(40, 60), (61, 33), (24, 24), (24, 31), (50, 24), (100, 33), (33, 100), (7, 9), (10, 64), (47, 48), (64, 10)]


@pytest.mark.parametrize("size", SIZES)
def test_clips_preprocessing_is_that_of_transformers_up_to_eight_bit_rounding(size):
    smooth = F.interpolate(torch.rand(1, 3, 5, 5), size, mode="bicubic").clamp(0, 1)
    values = (smooth[0].permute(1, 2, 0) * 255).round().byte().numpy()
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    expected = processor(Image.fromarray(values), return_tensors="pt").pixel_values
    got = preprocess(torch.from_numpy(np.array(values)).permute(2, 0, 1)[None].float() / 127.5 - 1, 24)
    assert got.shape == expected.shape
    # enlarging by cubic overshoots, and theirs is cut to 8 bits after each direction
    assert (got - expected).abs().max() < (2.1 if min(size) >= 24 else 6) / 255 / 0.26


def test_clips_sizes_and_crops_are_those_of_transformers_over_many_shapes(monkeypatch):
    sizes = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size, **keys: sizes.append(tuple(size)) or resize(x, size, **keys))
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    shapes = torch.randint(5, 120, (300, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for height, width in [shape for shape in shapes if min(shape) != 24]:
        preprocess(torch.zeros(1, 3, height, width), 24)
        assert sizes[-1] == get_resize_output_image_size(np.zeros((height, width, 3)), 24, default_to_square=False)
    for height, width in [(24, 24 + i) for i in range(9)] + [(24 + i, 24) for i in range(9)]:  # cropped alone
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        expected = processor(pixels, return_tensors="pt").pixel_values
        torch.testing.assert_close(preprocess(pixels[None] / 127.5 - 1, 24), expected, atol=1e-5, rtol=0)


def test_clip_finds_training_pictures_and_is_kept_on_disk(clip_folder, tmp_path):
    bank = TrainingBank.from_tensors(training_images(32).images[:20], cache=tmp_path)
    clip = CLIP(bank, clip_folder)
    assert clip(bank.pictures[:]).index.tolist() == list(range(20))
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("clip-tiny-crop24-")
    direct = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = F.normalize(direct(pixel_values=preprocess(bank.pictures[:], 24)).image_embeds, dim=1)
    torch.testing.assert_close(clip.vectors(bank.pictures[:]), expected, atol=2e-3, rtol=0)  # fp16 on disk
    fine = DescriptorSimilarity(bank, lambda images: images.flatten(1))
    assert TwoStage(clip, fine, 3)(bank.pictures[:]).index.tolist() == list(range(20))


def test_missing_clip_weights_say_what_to_do_in_a_line(bank, tmp_path):
    with pytest.raises(FileNotFoundError, match="similarity.coarse.source: no CLIP at .*/none.*hf download") as error:
        CLIP(bank, tmp_path / "none")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_runs_in_the_lab_and_its_vectors_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    for i, image in enumerate(training_images(32).images[:40]):
        Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(f"train/{i:02d}.png")
    lab = ["trainer=cpu", "model=lab_sd", "similarity=lab_two_stage", "data=folder", "data.path=train"]
    lab += ["data.cache=vectors", "similarity.candidates=7"]
    assert main(["task=bank", *lab]) == 0
    kept = " ".join(path.name for path in (tmp_path / "vectors").rglob("*"))
    assert all(f"lab_{name}-none" in kept for name in ("guide", "judge", "scorer")), kept
    assert capsys.readouterr().out.count("similarity=lab_two_stage: 40 vectors of") == 2
    quick = ["n_samples=2", "sampler.steps=3", "metrics.extractor=none", "output_dir=out"]
    assert main([*lab, *quick, "guidance=sim", "threshold=constant", "threshold.value=-1"]) == 0
    table = records.read("out")
    assert (table.norm_sim > 0).all() and (table.dropped == 0).all()
