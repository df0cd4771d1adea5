"""Figures show what the run folders hold, and pictures pixel by pixel."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_runs import LAMBDA, write_run

from amg.metrics import Share
from amg.worlds.drawings import CAUSES, training_images
from experiments.report.curves import COPIED, NOVEL, chains, figure3, panels, privacy_utility
from experiments.report.pictures import SIDE, choose, contact_sheet, enlarge, figure4, picture, training_picture
from experiments.report.style import UNGUIDED, style
from experiments.run import records


@pytest.fixture
def pair(tmp_path):
    return write_run(tmp_path / "none", "none", {0, 1, 4}), write_run(tmp_path / "full", "full", set())


@pytest.fixture
def drawn(monkeypatch):
    """What a figure draws, taken at the moment it is saved."""
    from matplotlib.figure import Figure

    seen, save = [], Figure.savefig

    def spy(self, *args, **kwargs):
        for axis in self.axes:
            for line in axis.lines:
                seen.append((axis.get_title(loc="left"), line.get_label(), np.array(line.get_xydata())))
            for text in axis.texts:
                seen.append((axis.get_title(loc="left"), text.get_text(), np.array(text.xy)))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def line(drawn, panel: str, label: str) -> np.ndarray:
    return next(xy for title, name, xy in drawn if title.startswith(panel) and name == label)


def test_panels_are_the_causes_in_order_and_ordinary_last(pair):
    found = panels(records.read(pair[0]))
    assert list(found) == [*CAUSES, "ordinary"]
    assert found["specific prompt"] == {0, 4} and found["ordinary"] == {3, 7}


def test_without_prompts_panels_are_what_the_unguided_chain_became(tmp_path):
    run = write_run(tmp_path / "none", "none", {2, 5}, unconditional=True)
    assert panels(records.read(run)) == {COPIED: {2, 5}, NOVEL: {0, 1, 3, 4, 6, 7}}
    blind = records.read(run).assign(truth=pd.array([None] * 8, dtype="boolean"))
    assert panels(blind)[COPIED] == {2, 5}  # the chains that end above λ


def test_band_is_percentiles_over_chains_at_each_time(pair):
    found = chains(records.read(pair[0]))
    low, median, high = found.band()
    # at the picture: three chains at 1.0, five at 0.3
    assert (low[-1], median[-1], high[-1]) == pytest.approx((0.3, 0.3, 1.0))
    assert (low[0], median[0], high[0]) == pytest.approx((0.1, 0.1, 0.1))


def test_chains_of_different_length_are_refused(pair):
    rows = records.read(pair[0])
    rows.at[0, "trace_t"] = rows.at[0, "trace_t"][:-1]
    with pytest.raises(ValueError, match="a folder of its own"):
        chains(rows)


def test_figure3_draws_medians_of_both_runs_and_the_threshold(pair, tmp_path, drawn):
    out = figure3(*pair, tmp_path / "figure3.png")
    assert Image.open(out).width > 1000
    assert line(drawn, "Specific prompt (n = 2)", "without")[-1] == pytest.approx((0.0, 1.0))
    assert line(drawn, "Specific prompt", "with guidance")[-1] == pytest.approx((0.0, 0.3))
    assert line(drawn, "Duplicated caption", "without")[-1, 1] == pytest.approx(0.65)  # of 1.0 and 0.3
    assert set(line(drawn, "Ordinary", "threshold λ$_t$")[:, 1]) == {LAMBDA}


def test_figure3_as_distance_draws_positive_numbers(tmp_path, drawn):
    run = write_run(tmp_path / "none", "none", {0})
    figure3(run, None, tmp_path / "figure3.png", distance=True)
    assert line(drawn, "Specific prompt", "without")[-1, 1] == pytest.approx(-0.65)  # σ turned round
    assert not any(label == "with guidance" for _, label, _ in drawn)


def test_figures_leave_matplotlib_as_it_was(pair, tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    figure3(*pair, tmp_path / "figure3.png")
    with pytest.raises(ZeroDivisionError), style() as inside:
        inside.figure()
        raise ZeroDivisionError
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_enlarging_repeats_pixels_a_whole_number_of_times():
    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    big = enlarge(pixels, 16)
    assert big.shape == (15, 15, 3)
    assert (big[::3, ::3] == pixels).all() and (big[2::3, 1::3] == pixels).all()


def test_large_picture_is_averaged_down_by_a_whole_number():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[::2] = 100
    assert enlarge(pixels, 4).shape == (4, 4, 3) and (enlarge(pixels, 4) == 50).all()


def test_copies_come_first_and_the_same_copy_only_once(pair):
    none, guided = map(records.read, pair)
    assert choose(none, guided, 3) == [0, 1, 4]
    none.loc[none["seed"] == 1, "nearest_index"] = none.loc[none["seed"] == 0, "nearest_index"].item()
    assert choose(none, guided, 3)[:2] == [0, 4]
    assert 4 not in choose(none, guided[guided["seed"] != 4], 8)


def test_figure4_holds_each_picture_pixel_by_pixel(pair, tmp_path):
    images = training_images(32).images
    out = figure4(*pair, images, tmp_path / "figure4.png", n=2)
    sheet = np.asarray(Image.open(out).convert("RGB"))

    def inside(pixels: np.ndarray) -> bool:
        big = enlarge(pixels)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, big.shape)[:, :, 0]
        hits = np.argwhere(
            (windows[:, :, 60, 60] == big[60, 60]).all(-1) & (windows[:, :, 90, 120] == big[90, 120]).all(-1)
        )
        return any((windows[y, x] == big).all() for y, x in hits)

    for seed in (0, 1):
        assert inside(picture(pair[0], seed)) and inside(picture(pair[1], seed))
        assert inside(training_picture(images, 10 * seed))
    assert not inside(picture(pair[0], 5))  # not among the first two copies
    assert SIDE % 32 == 0


def test_figure4_of_runs_without_a_common_seed_says_what_to_do(pair, tmp_path):
    other = write_run(tmp_path / "other", "full", set(), n=1)
    with pytest.raises(ValueError, match="same seed="):
        figure4(pair[0], other, training_images(32).images, tmp_path / "figure4.png", seeds=[])


def test_contact_sheet_frames_the_copies_alone(pair, tmp_path):
    sheet = np.asarray(Image.open(contact_sheet(pair[0], tmp_path / "sheet.png", columns=4)))
    frame = [int(UNGUIDED[i : i + 2], 16) for i in (1, 3, 5)]
    corners = [(sheet[8 + (i // 4) * 72 - 3, 8 + (i % 4) * 72 - 3] == frame).all() for i in range(8)]
    assert [i for i, framed in enumerate(corners) if framed] == [0, 1, 4]


def test_scatter_puts_each_row_at_its_share_and_utility(tmp_path, drawn):
    points = {"none": (50, 12.0), "full": (0, 11.0), "wen": (3, 14.0)}
    results = {name: {"copies": Share(copies, 200), "fid": fid} for name, (copies, fid) in points.items()}
    results |= {"og": "n/a", "gni": None}
    privacy_utility(results, tmp_path / "scatter.png", labels={"full": "AMG"})
    named = {name: tuple(xy) for _, name, xy in drawn if name in ("none", "AMG", "wen", "og", "gni")}
    assert named == {"none": (25.0, 12.0), "AMG": (0.0, 11.0), "wen": (1.5, 14.0)}


def test_names_of_close_points_do_not_cover_each_other(tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    boxes = []
    save = Figure.savefig

    def spy(self, *args, **kwargs):
        for text in self.axes[0].texts:
            text.update_positions(self.canvas.get_renderer())
            boxes.append(Text.get_window_extent(text))  # of the words, without a line to the point
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    results = {f"method {i}": {"n": 500, "copies": Share(i % 3, 500), "fid": 10 + 0.15 * i} for i in range(6)}
    privacy_utility({**results, "none": {"n": 500, "copies": Share(200, 500), "fid": 14.0}}, tmp_path / "scatter.png")
    assert len(boxes) == 8  # seven names and "better"
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_scatter_without_a_point_says_which_numbers_are_missing(tmp_path):
    with pytest.raises(ValueError, match="copies and fid"):
        privacy_utility({"none": {"n": 10, "copies": Share(1, 10), "fid": None}}, tmp_path / "scatter.png")


def test_runs_of_other_prompts_are_no_twins(tmp_path):
    from experiments.report.sections import _twins

    manifests = {
        "none snowman": {"guidance": "none", "twin": "a"},
        "full bus": {"guidance": "full", "twin": "b"},
        "full snowman": {"guidance": "full", "twin": "a"},
    }
    assert ("none snowman", "full snowman") in _twins(list(manifests), manifests)
