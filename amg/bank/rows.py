"""The rows of a bank: where each training image lies, its captions and digest. On disk in Arrow, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amg.bank.cache import write_array
from amg.bank.images import UnreadableImage, decode_pixels, header
from amg.bank.sources import Row, Source, opened
from amg.tensors import replacing

if TYPE_CHECKING:
    import pyarrow as pa

FILE = 65_536
"""Rows a file."""
VERIFIED = 20_000
"""Images up to which a bank that nobody asked to be built looks at every pixel at once."""
VERSION = 1


class Rows:
    """All rows of a source in its order, and the entries among them: each distinct image that has a header, once.

    A row's number is its place in the source and never changes; rows are appended. An entry's number is what an index
    answers; entries are in the order of their first rows.

    Args:
        tables: FILE rows each, the last may have fewer: a function of their number.
        entries: row of each entry, (N,).
        repeats: entry and row of every further occurrence, by entry, (M, 2).
        info: what `bank.json` holds.
        source: gives the encoded images again; None where there are none.
        path: the folder; None in memory.
    """

    def __init__(
        self,
        tables: Callable[[int], pa.Table],
        entries: np.ndarray,
        repeats: np.ndarray,
        info: dict[str, Any],
        source: Source | None = None,
        path: Path | None = None,
    ):
        self.table, self.entries, self.repeats, self.info, self.source = tables, entries, repeats, info, source
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Rows:
        """The rows of a folder, memory-mapped: nothing is read that nobody asks for.

        Raises:
            FileNotFoundError, ValueError: where there is no whole bank.
        """
        info = read_info(path)
        if info.get("rows") is None:
            raise ValueError(f"data.path: {path} is not whole: TrainingBank.build goes on with it")
        entries, repeats = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("entries", "repeats"))
        if len(entries) != info["entries"]:
            raise ValueError(f"data.path: {path}/entries.npy has {len(entries)} entries, bank.json {info['entries']}")
        return cls(Mapped(path / "rows"), entries, repeats, info, path=path)

    @classmethod
    def build(
        cls,
        path: Path,
        source: Source,
        verify: int = 0,
        on_rows: Callable[[int], None] | None = None,
        grow: bool = False,
    ) -> Rows:
        """Reads what the folder lacks of a source; whoever is killed goes on at the last whole file.

        Args:
            verify: rows that are decoded to their end, so that broken ones are no entries. Of the others the header is
                read alone; what is broken behind it is found when it is embedded.
            on_rows: told how many rows were read, block by block.
            grow: appends the new images of a folder, wherever they stand in it; else only those at its end.
        Raises:
            ValueError: for a folder of another source, or a source that changed.
        """
        from filelock import FileLock

        (path / "rows").mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".lock"):  # two processes that build the same bank do it once
            info = read_info(path) if (path / "bank.json").is_file() else {}
            if info and info["source"] != source.spec:
                raise ValueError(
                    f"data.path: {path} is a bank of {json.dumps(info['source'], ensure_ascii=False)}, not of "
                    f"{json.dumps(source.spec, ensure_ascii=False)}: name another folder"
                )
            stamp = digest_of_json(source.stamp())
            if info.get("rows") is not None and info["stamp"] == stamp:
                return cls.open(path)
            if not info:
                write_info(path, {"version": VERSION, "source": source.spec, "rows": None})
            known = None
            if grow and info.get("rows") is not None and source.spec["kind"] == "folder":
                known = dict(pair for file in _files(path / "rows") for pair in _sizes(read_table(file)))
            _write_rows(path / "rows", source, verify, on_rows, known)
            _finish(path, source, stamp, info)
        return cls.open(path)

    @classmethod
    def read(cls, source: Source) -> Rows:
        """All rows of a source in memory."""
        tables = [_table(part) for part in _blocks(_looked_at(source.rows(), float("inf"), hasattr(source, "vectors")))]
        return cls.of_tables(tables, source)

    @classmethod
    def of_tables(cls, tables: list[pa.Table], source: Source | None = None) -> Rows:
        """Rows in memory, FILE a table."""
        entries, repeats = merged(tables)
        missed = source.missed if source else {}
        info = _facts(tables, entries, repeats, missed)
        if source is not None:
            info |= {"source": source.spec, "captions_in": source.captions_in}
        return cls(tables.__getitem__, entries, repeats, info, source)

    def __len__(self) -> int:
        return len(self.entries)

    def remember(self, **facts: Any) -> None:
        """Keeps more facts in `bank.json`."""
        self.info |= facts
        if self.path is not None:
            write_info(self.path, self.info)

    def rows_of(self, entry: int) -> list[int]:
        """The rows of an entry, its first one first."""
        lo, hi = np.searchsorted(self.repeats[:, 0], [entry, entry + 1])
        return [int(self.entries[entry]), *self.repeats[lo:hi, 1].tolist()]

    def look(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Columns of some rows, in their order."""
        found: list[dict[str, Any]] = [{}] * len(rows)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row // FILE, []).append(place)
        for number, some in places.items():
            part = self.table(number).select(columns).take([rows[place] % FILE for place in some]).to_pylist()
            for place, row in zip(some, part, strict=True):
                found[place] = row
        return found

    def captions(self, entries: Sequence[int]) -> list[tuple[str, ...]]:
        """Captions of entries over all their occurrences, the most frequent first; none is empty."""
        own = [self.rows_of(entry) for entry in entries]
        listed = iter(self.look([row for rows in own for row in rows], ["captions"]))
        counts = [Counter(text for _ in rows for text in next(listed)["captions"]) for rows in own]
        return [tuple(text for text, _ in count.most_common() if text) for count in counts]

    @cached_property
    def multiplicity(self) -> np.ndarray:
        """Number of times that each entry occurs, (N,): a list of captions stands for as many occurrences."""
        import pyarrow.compute as pc

        tables = (self.table(number) for number in range(-(-self.info["rows"] // FILE)))
        lengths = [pc.list_value_length(table["captions"]).to_numpy(zero_copy_only=False) for table in tables]
        occurs = np.maximum(np.concatenate(lengths), 1).astype(np.int64)
        counts = occurs[self.entries]
        np.add.at(counts, self.repeats[:, 0], occurs[self.repeats[:, 1]])
        return counts

    def decoded(self, entries: Iterable[int], size: tuple[int, int] | None = None) -> Iterator[np.ndarray | str]:
        """Images as 8-bit RGB, (H, W, 3), or the reason that one cannot be read.

        Raises:
            ValueError: where a file is gone or is not what it was.
        """
        entries = list(entries)
        columns = ["key", "file", "offset", "size", "digest"]
        for row in self.look([int(self.entries[entry]) for entry in entries], columns):
            data = self._encoded(row)
            try:
                yield decode_pixels(data, size)
            except UnreadableImage as error:
                yield str(error)

    @property
    def imageless(self) -> bool:
        """True for an index without images."""
        return (self.info.get("source") or {}).get("kind") == "embeddings"

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """Vectors that the source has, of some entries, (n, D)."""
        rows = self.entries[start:stop]
        found = self._source().vectors(int(rows[0]), int(rows[-1]) + 1)
        return found[rows - rows[0]]

    def changed(self, entries: Sequence[int]) -> list[str]:
        """Names of images that are gone or not what they were when the bank was built."""
        columns = ["key", "file", "offset", "size", "digest"]
        rows = self.look([int(self.entries[entry]) for entry in entries], columns)
        return [row["key"] for row in rows if digest_of(self._read(row)) != row["digest"]]

    def _read(self, row: dict[str, Any]) -> bytes | None:
        source = self._source()
        try:
            return source.read(row["file"], row["offset"], row["size"])
        except (OSError, StopIteration, IndexError):
            return None

    def _encoded(self, row: dict[str, Any]) -> bytes | None:
        if self.imageless:
            raise ValueError(f"data.path: {self.name} is an index without images: {row['key']} cannot be shown")
        data = self._read(row)
        if digest_of(data) != row["digest"]:
            state = "gone" if data is None else "not what it was when the bank was built"
            raise ValueError(
                f"data.path: {row['key']} of {self.name} is {state}: build the bank anew in another folder"
            )
        return data

    def _source(self) -> Source:
        if self.source is None:
            spec = dict(self.info["source"])
            self.source = opened(spec.pop("path"), **spec)
        return self.source

    @property
    def name(self) -> str:
        """Source of the images."""
        return str((self.info.get("source") or {}).get("path", "memory"))

    def broken(self) -> dict[int, str]:
        """Entries that turned out to be broken when they were decoded, and the reason."""
        file = self.path and self.path / "broken.jsonl"
        if file is None or not file.is_file():
            return dict(self.info.get("broken_entries", {}))
        found = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):  # the last line of a killed process
                row = json.loads(line)
                found[row["entry"]] = row["reason"]
        return found

    def report(self, broken: dict[int, str]) -> None:
        """Keeps what turned out to be broken."""
        if self.path is None:
            self.info.setdefault("broken_entries", {}).update(broken)
        elif new := broken.keys() - self.broken().keys():
            lines = "".join(json.dumps({"entry": entry, "reason": broken[entry]}) + "\n" for entry in sorted(new))
            with (self.path / "broken.jsonl").open("ab") as out:
                out.write(lines.encode())

    def unread(self) -> Iterator[str]:
        """Name and reason of each row that is no image, and of the entries that turned out to be broken."""
        for number in range(-(-self.info["rows"] // FILE)) if self.info["counts"]["broken"] else ():
            table = self.table(number).select(["key", "broken"])
            for row in table.filter(table["broken"].is_valid()).to_pylist():
                yield f"{row['key']} ({row['broken']})"
        late = self.broken()
        names = self.look([int(self.entries[entry]) for entry in late], ["key"])
        yield from (f"{row['key']} ({reason})" for row, reason in zip(names, late.values(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Mapped files are opened again by the process that gets it."""
        if self.path is None:
            return self.__dict__
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if "info" in state else Rows.open(state["path"]).__dict__)


class Mapped:
    """The tables of a folder, each opened when it is asked for."""

    def __init__(self, folder: Path):
        self.folder, self._open = folder, {}

    def __call__(self, number: int) -> pa.Table:
        if number not in self._open:
            self._open[number] = read_table(self.folder / f"{number:05d}.arrow")
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": {}}  # mapped again by the process that gets it


def read_table(file: Path) -> pa.Table:
    """A file of rows, memory-mapped.

    Raises:
        ValueError: where it cannot be read.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as mapped:
            return pa.ipc.open_file(mapped).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"data.path: {file} cannot be read ({reason}): delete it and build again") from None


def read_info(path: Path) -> dict[str, Any]:
    """Content of `bank.json`.

    Raises:
        FileNotFoundError, ValueError: where there is none, or one of another version.
    """
    file = path / "bank.json"
    if not file.is_file():
        raise FileNotFoundError(f"data.path: {path} is no bank: TrainingBank.build makes one")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"data.path: {file} is no readable manifest: delete it and build again") from None
    if info.get("version") != VERSION:
        raise ValueError(f"data.path: {file} is of version {info.get('version')}, expected {VERSION}: build it anew")
    return info


def write_info(path: Path, info: dict[str, Any]) -> None:
    with replacing(path / "bank.json") as part:
        part.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of(data: bytes | None) -> bytes:
    """Of an encoded image."""
    return hashlib.blake2b(data or b"", digest_size=16).digest()


def digest_of_json(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _write_rows(
    folder: Path,
    source: Source,
    verify: int,
    on_rows: Callable[[int], None] | None,
    known: dict[str, int] | None,
) -> None:
    """Writes the files that are missing, whole or not at all; a last file that is not full is written again.

    Args:
        known: images of a folder that are there, which its new ones follow.
    """
    import pyarrow as pa

    there = _files(folder)
    last = read_table(there[-1]) if there else None
    full = len(there) - (last is not None and len(last) < FILE)
    if on_rows is not None and full:
        on_rows(full * FILE)
    number = full
    if known is None:
        rows = _looked_at(source.rows(full * FILE), verify - full * FILE, hasattr(source, "vectors"))
        parts = _blocks(rows)
    else:
        begun = zip(*(column.to_pylist() for column in last.columns), strict=True) if full < len(there) else ()
        parts = _blocks(_looked_at(source.rows(known=known), 0), list(begun))
    for part in parts:
        table = _table(part)
        if number == full and full < len(there):  # grown, or as it was
            assert last is not None
            if not table.slice(0, len(last)).equals(last):  # fewer rows are not equal either
                raise ValueError(
                    f"data.path: {source.spec['path']} is not what it was: build the bank in another folder"
                )
        with replacing(folder / f"{number:05d}.arrow") as place, place.open("wb") as out:
            with pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table, FILE)
            out.flush()
            os.fsync(out.fileno())
        number += 1
        if on_rows is not None:
            on_rows(len(table))
    if number < len(there):
        raise ValueError(f"data.path: {source.spec['path']} has fewer images than before: build another bank")


def _files(folder: Path) -> list[Path]:
    """The whole files, without a gap."""
    found = sorted(folder.glob("[0-9]*.arrow"))
    return [file for number, file in enumerate(found) if file.name == f"{number:05d}.arrow"]


def _finish(path: Path, source: Source, stamp: str, before: dict[str, Any]) -> None:
    """Entries, counts and digest of all rows."""
    tables = [read_table(file) for file in _files(path / "rows")]
    entries, repeats = merged(tables)
    write_array(path / "entries.npy", [entries])
    write_array(path / "repeats.npy", [repeats])
    facts = _facts(tables, entries, repeats, source.missed)
    grown = before.get("grown", {})
    if before.get("rows") is not None:
        grown = grown | {before["digest"]: before["entries"]}
    about = {"version": VERSION, "source": source.spec, "captions_in": source.captions_in, "stamp": stamp}
    write_info(path, before | about | facts | {"grown": grown})


def _looked_at(
    rows: Iterable[Row], verify: float, imageless: bool = False
) -> Iterator[tuple[Row, tuple[int, int] | None, str | None]]:
    """Each row with height and width, or the reason that it is no image."""
    for number, row in enumerate(rows):
        if imageless:
            yield row._replace(data=row.key.encode()), None, None  # one address is one entry
            continue
        shape, reason = header(row.data), None
        if shape is None or number < verify:
            try:
                shape = decode_pixels(row.data).shape[:2]
            except UnreadableImage as error:
                shape, reason = None, str(error)
        yield row, shape, reason


def _sizes(table: pa.Table) -> Iterator[tuple[str, int]]:
    return zip(table["key"].to_pylist(), table["size"].to_pylist(), strict=True)


def _blocks(rows: Iterator[Any], block: list[Any] | None = None) -> Iterator[list[Any]]:
    """FILE rows at a time; the first follow those of a block that was begun."""
    block = block or []
    for row, shape, reason in rows:
        block.append((*row[:5], digest_of(row.data), *(shape or (0, 0)), reason))
        if len(block) == FILE:
            yield block
            block = []
    if block:
        yield block


def schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("file", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("captions", pa.list_(pa.string())),
            ("digest", pa.binary(16)),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("broken", pa.string()),
        ]
    )


def _table(block: list[tuple]) -> pa.Table:
    """Rows as a table whose schema carries a digest of what they say: images and captions."""
    import pyarrow as pa

    columns = list(zip(*block, strict=True))
    fields = schema()
    content = hashlib.blake2b(b"".join(columns[5]), digest_size=16)
    content.update(json.dumps([list(captions) for captions in columns[4]]).encode())
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=fields.with_metadata({"digest": content.hexdigest()}))


def table_of(digests: Sequence[bytes], captions: Sequence[Sequence[str]], height: int, width: int) -> list[pa.Table]:
    """Tables of images that lie in memory."""
    rows = [
        (str(i), "", i, -1, listed, digest, height, width, None)
        for i, (digest, listed) in enumerate(zip(digests, captions, strict=True))
    ]
    return [_table(rows[i : i + FILE]) for i in range(0, len(rows), FILE)]


def merged(tables: Sequence[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """First rows of distinct images, (N,), and entry and row of each further one, (M, 2), by entry.

    Takes 24 bytes a row.
    """
    heads, wholes = [], []
    for table in tables:
        digests = table["digest"].combine_chunks()
        raw = np.frombuffer(digests.buffers()[1], np.uint64)[2 * digests.offset :][: 2 * len(digests)].reshape(-1, 2)
        heads.append(raw[:, 0].copy())
        wholes.append(table["broken"].is_null().to_numpy())
    if not heads:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    whole = np.flatnonzero(np.concatenate(wholes))
    # half of a digest tells 10⁹ images apart but for one pair in 30 such sets
    _, first, group = np.unique(np.concatenate(heads)[whole], return_index=True, return_inverse=True)
    first_of = first[group]  # place of the first of its kind, for each
    own = first_of == np.arange(len(whole))
    number = np.cumsum(own) - 1
    again = np.flatnonzero(~own)
    repeats = np.stack([number[first_of[again]], whole[again]], 1) if len(again) else np.zeros((0, 2), np.int64)
    return whole[own], repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]


def _facts(
    tables: Sequence[pa.Table], entries: np.ndarray, repeats: np.ndarray, missed: dict[str, int]
) -> dict[str, Any]:
    """Counts, sizes and digest of rows."""
    import pyarrow.compute as pc

    total = sum(len(table) for table in tables)
    broken = sum(len(table) - table["broken"].null_count for table in tables)
    bare, digest, shapes = 0, hashlib.blake2b(digest_size=16), {}
    for table in tables:
        digest.update((table.schema.metadata or {})[b"digest"])
        whole = table.filter(table["broken"].is_null())
        flat = pc.list_flatten(whole["captions"])
        parents = pc.list_parent_indices(whole["captions"])
        captioned = pc.filter(parents, pc.not_equal(flat, ""))
        bare += len(whole) - len(pc.unique(captioned))
        if len(shapes) < 2 and len(whole):
            sizes = pc.unique(pc.add(pc.multiply(whole["height"].cast("int64"), 2**32), whole["width"]))
            for value in sizes.to_pylist()[:2]:
                if len(shapes) < 2 and (divmod(value, 2**32)) not in shapes:
                    height, width = divmod(value, 2**32)
                    alike = pc.and_(pc.equal(whole["height"], height), pc.equal(whole["width"], width))
                    shapes[height, width] = whole.filter(alike)["key"][0].as_py()
    counts = {"images": total, "entries": len(entries), "repeats": len(repeats), "broken": broken}
    counts |= {"without caption": bare, "not downloaded": sum(missed.values())}
    return {
        "rows": total,
        "entries": len(entries),
        "counts": counts,
        "missed": missed,
        "shapes": [[*shape, key] for shape, key in shapes.items()],
        "digest": digest.hexdigest(),
    }
