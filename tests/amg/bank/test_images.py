"""Encoded images as viewers show them: whatever the depth, orientation, transparency or suffix."""

import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from amg import TrainingBank
from amg.bank.images import BankNote, UnreadableImage, decode, decode_pixels, height_width

RAMP = np.array(Image.linear_gradient("L").resize((16, 16)))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values, kind):
    return encoded(Image.fromarray(values), kind)


DEEP = RAMP.astype(np.uint16) * 257


@pytest.mark.parametrize(
    "data",
    [
        grey(DEEP, "PNG"),
        grey(DEEP, "TIFF"),
        grey(DEEP.astype(">u2"), "TIFF"),
        grey(DEEP, "PPM"),
        grey(DEEP, "JPEG2000"),
        grey(DEEP.astype(np.int32), "TIFF"),
        grey(RAMP.astype(np.int32), "TIFF"),  # 8-bit values in 32 bits
    ],
)
def test_deep_grey_is_the_eight_bit_image(data):
    assert np.array_equal(decode_pixels(data), np.repeat(RAMP[..., None], 3, 2))


@pytest.mark.parametrize(
    "values, reason",
    [
        (RAMP.astype(np.float32), "32-bit floats"),
        (-RAMP.astype(np.int32), "beyond 16 bits"),
        (DEEP.astype(np.int32) * 9, "beyond 16 bits"),
    ],
)
def test_values_of_unknown_range_are_left_out_and_counted_with_the_reason(tmp_path, values, reason):
    (tmp_path / "a.tif").write_bytes(grey(values, "TIFF"))
    Image.fromarray(RAMP).save(tmp_path / "b.png")
    with pytest.warns(BankNote, match=rf"1 of 2 images cannot be read and are left out: a.tif \(.*{reason}"):
        assert len(TrainingBank.from_folder(tmp_path, cache=None)) == 1


ORIENTATIONS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: np.rot90,
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("kind, orientation", itertools.product(("PNG", "TIFF", "WEBP"), ORIENTATIONS))
def test_images_are_turned_as_exif_says(kind, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(
        Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright))), kind, exif=exif, **lossless
    )
    assert np.array_equal(decode_pixels(data), upright)


def test_a_broken_exif_block_spoils_no_image():
    assert np.array_equal(decode_pixels(encoded(Image.fromarray(RAMP), exif=b"Exif\0\0MM\0*broken"))[..., 0], RAMP)


def test_what_is_transparent_is_white():
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[..., 1] = 255  # green that no viewer shows
    colours[2:6, 2:6] = (200, 30, 30, 255)
    colours[0, 0] = (0, 0, 0, 128)
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[2:6, 2:6] = (200, 30, 30)
    expected[0, 0] = 127
    assert np.array_equal(decode_pixels(encoded(Image.fromarray(colours))), expected)
    assert np.array_equal(decode_pixels(encoded(Image.fromarray(colours), "WEBP", lossless=True, exact=True)), expected)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 255, 0, 9, 9, 9])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        assert decode_pixels(encoded(palette, kind, transparency=0)).tolist() == [[[255] * 3, [9] * 3]]
    one = Image.new("RGB", (2, 1), (7, 8, 9))
    one.putpixel((0, 0), (0, 255, 0))
    assert decode_pixels(encoded(one, transparency=(0, 255, 0))).tolist() == [[[255] * 3, [7, 8, 9]]]
    assert decode_pixels(encoded(Image.new("LA", (1, 1), (5, 0)))).tolist() == [[[255] * 3]]


def test_every_reader_decodes_alike(tmp_path):
    from amg.bank.cifar10 import read_cifar10

    deep = grey(np.array(Image.linear_gradient("L").resize((32, 32))).astype(np.uint16) * 257, "PNG")
    (tmp_path / "a.png").write_bytes(deep)
    (tmp_path / "a.txt").write_text("x")
    cell = [{"bytes": deep, "path": None}]
    pq.write_table(pa.table({"image": cell, "text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"img": cell, "label": [3]}), tmp_path / "train.parquet")
    expected = decode(deep)[None]
    assert torch.equal(TrainingBank.from_folder(tmp_path, cache=None).pictures[:], expected)
    assert torch.equal(TrainingBank.from_folder(tmp_path / "a.parquet", cache=None).pictures[:], expected)
    assert torch.equal(read_cifar10(tmp_path / "train.parquet")[0], expected)


@pytest.mark.parametrize(
    "data", [None, b"", b"no image", encoded(Image.fromarray(RAMP))[:60], "text", b"%!PS-Adobe-3.0 EPSF"]
)
def test_bytes_that_are_no_image_are_unreadable_and_nothing_else(data):
    with pytest.raises(UnreadableImage):
        decode(data)


def test_sizes_are_a_side_or_height_and_width():
    assert height_width(None) is None and height_width(4) == (4, 4) and height_width([3, 5]) == (3, 5)
    wide = encoded(Image.fromarray(RAMP))
    assert decode(wide, (4, 8)).shape == (3, 4, 8)
    torch.testing.assert_close(decode(wide, (1, 16))[0, 0].mean(), decode(wide)[0].mean(), atol=4e-3, rtol=0)
    for size in (0, -1, True, 1.5, "8", [8], [8, 0], (8, 8, 8), [8, None]):
        with pytest.raises(ValueError, match="data.size: expected a side in pixels, .*, got "):
            height_width(size)
