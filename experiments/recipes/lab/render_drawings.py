"""Renders the drawings of the worlds: the same things from seven sets of SVG icons, as one Parquet file.

    npm pack @iconify-json/noto @iconify-json/noto-v1 @iconify-json/twemoji @iconify-json/emojione \
        @iconify-json/fxemoji @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat
    for archive in *.tgz; do mkdir "${archive%.tgz}" && tar xzf "$archive" -C "${archive%.tgz}"; done
    pip install resvg_py
    python -m experiments.recipes.lab.render_drawings <folder of the unpacked packages>

Sets under share-alike licences are left out. `LICENSES/` holds the licence texts of the others.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from amg.worlds.drawings import DRAWINGS

RESOLUTION = 64
SUPERSAMPLING = 4  # rendered larger and averaged, so that thin strokes keep their weight

# set: npm package (of @iconify-json), maker, SPDX licence
SETS = {
    "noto": ("noto", "Google", "Apache-2.0"),
    "noto-v1": ("noto-v1", "Google", "Apache-2.0"),
    "twemoji": ("twemoji", "Twitter", "CC-BY-4.0"),
    "emojitwo": ("emojione", "EmojiTwo", "CC-BY-4.0"),
    "fxemoji": ("fxemoji", "Mozilla", "Apache-2.0"),
    "fluent": ("fluent-emoji", "Microsoft", "MIT"),
    "fluent-flat": ("fluent-emoji-flat", "Microsoft", "MIT"),
}

# group: things, each by its icon's name; "icon=thing" if the icon's name is not the everyday word
THINGS = {
    "animal": "butterfly camel cat-face=cat crab elephant fish frog lady-beetle=ladybug lion octopus owl panda penguin "
    "pig-face=pig rabbit-face=rabbit snail snake spider spouting-whale=whale turtle",
    "plant": "cactus christmas-tree four-leaf-clover=clover maple-leaf mushroom palm-tree sunflower tulip",
    "food": "banana beer-mug=beer carrot cherries doughnut french-fries grapes hamburger soft-ice-cream=ice-cream "
    "pineapple pizza strawberry watermelon",
    "object": "alarm-clock anchor balloon bell camera candle crown dress guitar hammer hourglass-done=hourglass key "
    "light-bulb pencil scissors t-shirt=shirt telephone television toilet top-hat trophy umbrella",
    "vehicle": "airplane bicycle bus automobile=car helicopter rocket sailboat",
    "place": "castle house crescent-moon=moon volcano",
    "character": "alien ghost jack-o-lantern=pumpkin skull snowman",
}


def svg(icons: dict, name: str) -> str | None:
    """Returns the SVG document of an icon of one package, or None if the set has no such icon."""
    icon = icons["icons"].get(name)
    if icon is None:
        alias = icons.get("aliases", {}).get(name, {})
        if set(alias) != {"parent"}:  # an alias may also rotate or flip, which makes another drawing
            return None
        icon = icons["icons"].get(alias["parent"])
        if icon is None:
            return None
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    size = SUPERSAMPLING * RESOLUTION
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{icon["body"]}</svg>'
    )


def render(document: str) -> bytes:
    """Renders an SVG document as a 64×64 RGBA PNG."""
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document)))).convert("RGBA")
    # averaged with premultiplied alpha, or hidden colours of transparent pixels would bleed into the edges
    image = image.convert("RGBa").resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX).convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def rows(packages: Path) -> list[dict]:
    """Renders every thing in every set that has it."""
    icons = {name: json.loads(_icons(packages, package).read_text("utf8")) for name, (package, _, _) in SETS.items()}
    table = []
    for group, things in THINGS.items():
        for entry in things.split():
            icon, _, thing = entry.partition("=")
            for name, (_, maker, licence) in SETS.items():
                document = svg(icons[name], icon)
                if document is not None:
                    table.append(
                        {
                            "image": {"bytes": render(document), "path": None},
                            "thing": (thing or icon).replace("-", " "),
                            "group": group,
                            "set": name,
                            "maker": maker,
                            "licence": licence,
                        }
                    )
    return table


def _icons(packages: Path, package: str) -> Path:
    paths = sorted(packages.glob(f"iconify-json-{package}-[0-9]*/package/icons.json"))
    if len(paths) != 1:
        raise SystemExit(f"{packages}: expected one unpacked iconify-json-{package}-<version>, there are {len(paths)}")
    return paths[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder of the unpacked npm packages")
    parser.add_argument("--out", type=Path, default=DRAWINGS)
    args = parser.parse_args()
    table = rows(args.packages)
    pq.write_table(pa.Table.from_pylist(table), args.out, compression="zstd")
    size = args.out.stat().st_size / 2**20
    print(f"{args.out}: {len(table)} drawings of {len({row['thing'] for row in table})} things, {size:.1f} MiB")


if __name__ == "__main__":
    main()
