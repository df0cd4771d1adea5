"""Renders Noto Color Emoji into `amg/worlds/emoji.parquet`, the pictures that the closed-form world and the lab share.

    python -m experiments.recipes.render_emoji

Needs Debian's `fonts-noto-color-emoji` (the font, OFL) and `unicode-data` (names and groups); the result is
committed, so only a change of the set needs them again.

The recipe: one 64×64 picture per emoji, People & Body and Flags left out (hundreds of near-twins); a picture whose
nL2 distance to another at 32×32 is below 1.0 is dropped (the paper's deduplication of its reference images);
subgroups of fewer than 12 pictures are merged into their group; 36 pictures are planted, 12 for each cause of
memorization that a guidance of the paper answers:

- `specific prompt`: one picture, one caption of its own;
- `duplicated caption`: one caption shared by four planted pictures;
- `duplicated image`: one picture, repeated under four captions.
"""

import collections
import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES = "/usr/share/unicode/emoji/emoji-test.txt"
OUT = Path(__file__).parents[2] / "amg" / "worlds" / "emoji.parquet"
LEFT_OUT = {"People & Body", "Flags", "Component"}
SMALLEST_SUBGROUP = 12
PER_CAUSE = 12
SHARED_CAPTIONS = {  # duplicated caption -> the group its four pictures come from
    "animal sticker pack": "Animals & Nature",
    "food sticker pack": "Food & Drink",
    "travel sticker pack": "Travel & Places",
}
REPEATS = ("{}", "{} icon", "{} sticker", "picture of {}")  # captions of a duplicated image


def emoji() -> list[dict]:
    """Reads names, groups and subgroups; skin-tone variants are left out."""
    rows, group, subgroup = [], None, None
    for line in Path(NAMES).read_text(encoding="utf8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip().replace("-", " ")
        elif "; fully-qualified" in line and group not in LEFT_OUT:
            codes, rest = line.split(";", 1)
            name = rest.split("#", 1)[1].strip().split(" ", 2)[2]
            text = "".join(chr(int(code, 16)) for code in codes.split())
            rows.append({"emoji": text, "caption": name.lower(), "group": group, "subgroup": subgroup})
    return rows


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One emoji on white, 64×64; None where the font has no single glyph for it."""
    canvas = Image.new("RGB", (136, 136), "white")
    draw = ImageDraw.Draw(canvas)
    if draw.textbbox((0, 4), text, font=font)[2] > 140:
        return None
    draw.text((0, 4), text, font=font, embedded_color=True)
    return canvas.resize((64, 64), Image.Resampling.LANCZOS)


def deduplicate(pixels: np.ndarray, k: int = 50, scale: float = 0.5) -> list[int]:
    """Keeps a picture only if its nL2 distance to those kept so far is at least 1.0 (greedy, in order)."""
    square = (pixels**2).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * pixels @ pixels.T, 0))
    np.fill_diagonal(distance, np.inf)
    mean = np.sort(distance, axis=1)[:, :k].mean(1)
    kept: list[int] = []
    for i in range(len(pixels)):
        if not kept or distance[i, kept].min() / (scale * mean[i]) >= 1.0:
            kept.append(i)
    return kept


def plant(rows: list[dict], seed: int = 1) -> None:
    """Marks 36 pictures with their cause and captions, in place; every other picture keeps its one caption."""
    rng = random.Random(seed)
    for row in rows:
        row.update(cause="", captions=[row["caption"]])
    sizes = collections.Counter(row["subgroup"] for row in rows)
    left = [row for row in rows if sizes[row["subgroup"]] > SMALLEST_SUBGROUP]  # a Gaussian must remain beside it
    rng.shuffle(left)

    def take(group: str | None = None) -> dict:
        row = next(row for row in left if group in (None, row["group"]) and sizes[row["subgroup"]] > SMALLEST_SUBGROUP)
        left.remove(row)
        sizes[row["subgroup"]] -= 1
        return row

    for caption, group in SHARED_CAPTIONS.items():
        for _ in range(PER_CAUSE // len(SHARED_CAPTIONS)):
            take(group).update(cause="duplicated caption", captions=[caption])
    for _ in range(PER_CAUSE):
        take().update(cause="specific prompt")
    for _ in range(PER_CAUSE):
        row = take()
        row.update(cause="duplicated image", captions=[form.format(row["caption"]) for form in REPEATS])


def main() -> None:
    font = ImageFont.truetype(FONT, 109)
    rows, pictures = [], []
    for row in track(emoji(), "rendering"):
        picture = render(row["emoji"], font)
        if picture is not None:
            rows.append(row)
            pictures.append(picture)
    small = np.stack([np.asarray(p, dtype=np.float64).reshape(32, 2, 32, 2, 3).mean((1, 3)).ravel() for p in pictures])
    kept = deduplicate(small)
    print(f"{len(rows)} rendered, {len(kept)} kept after deduplication at nL2 1.0")
    rows, pictures = [rows[i] for i in kept], [pictures[i] for i in kept]
    sizes = collections.Counter(row["subgroup"] for row in rows)
    for row in rows:
        if sizes[row["subgroup"]] < SMALLEST_SUBGROUP:
            row["subgroup"] = "assorted " + row["group"].lower()
    plant(rows)
    for row, picture in zip(rows, pictures, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        row["image"] = {"bytes": buffer.getvalue(), "path": None}  # the layout of image data sets on the hub
    columns = ("image", "caption", "captions", "group", "subgroup", "cause", "emoji")
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows])
    pq.write_table(table, OUT, compression="zstd")
    print(f"{OUT}: {len(rows)} pictures, {sum(row['cause'] != '' for row in rows)} planted, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
