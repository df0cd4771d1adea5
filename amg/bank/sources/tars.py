"""Tars of images, as webdataset and img2dataset write them."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amg.bank.images import suffixes
from amg.bank.sources.base import Row, listed, stamps
from amg.prompts.text_files import CAPTION_COLUMNS, captions_of, columns


class Tars:
    """Tars in the order of their names: members that share a name up to its first dot are one image and its texts.

    The caption is the `.txt` member, else a caption column of the `.json` one. Tars are read where they lie: an image
    is found again by its offset. Beside img2dataset's tars, its lists say what could not be downloaded.

    Args:
        path: a tar, a folder of tars, or `shards/{00000..01023}.tar`.
        caption: the column of the `.json` members; None takes the usual ones.
    """

    def __init__(self, path: str | Path, caption: str | None = None):
        self.root, self.files = listed(path, ".tar")
        self.caption = caption
        self.spec = {"kind": "tars", "path": str(path), "caption_column": caption}
        self.captions_in = f".txt members, or {', '.join([caption] if caption else CAPTION_COLUMNS)} of .json members"
        self.missed = _not_downloaded(self.files)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Each image; those before `start` are skipped by their headers.

        Raises:
            ValueError: for a tar that is cut short, compressed or none, by its name.
        """
        number = 0
        for path in self.files:
            name = os.path.relpath(path, self.root)
            with path.open("rb") as file, _readable(path), tarfile.open(fileobj=file, mode="r:") as tar:
                for key, image, texts in _grouped(tar):
                    number += 1
                    if number <= start:
                        continue
                    place = f"{path}, {key}"
                    captions = self._captions({kind: _bytes(tar, one) for kind, one in texts.items()}, place)
                    where = image.offset_data, image.size
                    yield Row(f"{name}/{image.name}", name, *where, captions, _bytes(tar, image))
                end = tar.offset if tar.offset < path.stat().st_size else -1
            if end < 0:
                raise ValueError(f"data.path: {path} is cut short: it lacks the end mark of a tar; copy it again")

    def read(self, file: str, offset: int, size: int) -> bytes | None:
        with (self.root / file).open("rb") as tar:
            tar.seek(offset)
            return tar.read(size)

    def stamp(self) -> Any:
        return stamps(self.files)

    def _captions(self, texts: dict[str, bytes], place: str) -> list[str]:
        try:
            if own := texts.get(".txt", b"").decode("utf-8-sig").strip():
                return [own]
            row = columns(json.loads(texts[".json"])) if ".json" in texts else {}
        except ValueError as error:
            raise ValueError(f"{place}: its text is no UTF-8 or no JSON ({error})") from None
        return captions_of(row, place, self.caption) or [""]


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Content of a member. `tar.extractfile` reads what is cut short as if it were whole."""
    tar.fileobj.seek(member.offset_data)
    data = tar.fileobj.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _grouped(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo, dict[str, tarfile.TarInfo]]]:
    """Name, image member and text members of each image."""
    last, image, texts = None, None, {}
    while (member := tar.next()) is not None:
        tar.members = []  # it would remember all
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if not member.isfile() or not stem:
            continue
        key, suffix = f"{folder}/{stem}", "." + extension.rpartition(".")[2].lower()
        if key != last:
            if image is not None:
                yield last, image, texts
            last, image, texts = key, None, {}
        if suffix in (".txt", ".json"):
            texts[suffix] = member
        elif suffix in suffixes() and image is None:
            image = member
    if image is not None:
        yield last, image, texts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        with path.open("rb") as file:
            packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd"))
        fix = "unpack it: a compressed tar has no offsets" if packed else "copy it again"
        raise ValueError(f"data.path: {path} is cut short or no tar ({error}): {fix}") from None


def _not_downloaded(files: list[Path]) -> dict[str, int]:
    """Counts what img2dataset's lists beside its tars say was not downloaded, by reason."""
    import pyarrow.parquet as pq

    reasons: Counter[str] = Counter()
    for file in files:
        beside = file.with_suffix(".parquet")
        if not beside.is_file() or not file.with_name(f"{file.stem}_stats.json").is_file():
            continue
        names = pq.read_schema(beside).names
        wanted = [name for name in ("status", "error_message") if name in names]
        for row in pq.read_table(beside, columns=wanted).to_pylist() if "status" in wanted else []:
            if row["status"] != "success":
                reasons[str(row.get("error_message") or row["status"])[:80]] += 1
    return dict(reasons.most_common(20))
