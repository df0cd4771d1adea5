"""One row per sample, in append-only Parquet shards: what is on disk is the state of a run.

A run's folder holds `records/*.parquet` and `images/<seed>.png`. A shard appears whole or not at all, so a run that
was killed resumes with the seeds that are missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from amg.tensors import replacing

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

_REQUIRED = {
    "seed": pa.int64(),
    "cause": pa.string(),  # "" for unconditional, "ordinary", or one of amg.worlds.drawings.CAUSES
    "similarity": pa.float64(),  # of the final image, by the guide, measured anew
    "nearest_index": pa.int64(),
    "nearest_caption": pa.string(),
    "judge": pa.float64(),  # by a similarity that gave no gradient
    "judge_index": pa.int64(),
    "steps": pa.int64(),
    "steps_guided": pa.int64(),  # null where the guidance is a rival: a record does not say when that one acted
    "trace_t": pa.list_(pa.float64()),
    "trace_similarity": pa.list_(pa.float64()),  # null at a step at which the sample was not looked at
    "trace_threshold": pa.list_(pa.float64()),
    "trace_flagged": pa.list_(pa.bool_()),
    "norm_spe": pa.float64(),  # mean over the steps, as the next two
    "norm_dup": pa.float64(),
    "norm_sim": pa.float64(),
    "dropped": pa.int64(),  # steps whose gradient was zero or not finite
    "seconds": pa.float64(),
}
_OPTIONAL = {
    "prompt": pa.string(),
    "label": pa.int64(),
    "truth": pa.bool_(),  # closed form: a planted point is responsible
    "component": pa.string(),
    "bits": pa.float64(),  # log2 p/p_safe under the sample's condition
    "aligned": pa.bool_(),  # the responsible component is one that was asked for
    "planted": pa.bool_(),  # the lab: the training image that the judge finds nearest was planted
    "tries": pa.int64(),  # times that the sample was drawn again; null without on_copy
    "refused": pa.bool_(),  # a black image took its place
}
LATER = {"tries", "refused"}
"""Columns that older shards lack, and rows may: null there."""
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=name == "steps_guided") for name, kind in _REQUIRED.items()]
    + [pa.field(name, kind) for name, kind in _OPTIONAL.items()]
)
"""Every column must be given; `steps_guided` and those of the second half may be null."""


def append(
    run_dir: str | Path, rows: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA, kind: str = "records"
) -> Path:
    """Writes one shard, named by its first and last seed; an existing shard is never touched.

    Args:
        run_dir: the run's folder.
        rows: one dict per sample with exactly the columns of the schema; tensors and arrays become lists.
        schema: of the shards; it has a column `seed`.
        kind: the folder of the shards in the run's folder.
    Returns:
        The shard's path.
    Raises:
        ValueError: for no rows, and for an unknown, missing, null or ill-typed column, by name.
    """
    if not rows:
        raise ValueError("records: no rows to append")
    for row in rows:
        missing = set(schema.names) - set(row) - LATER
        for problem, names in (("unknown", set(row) - set(schema.names)), ("missing", missing)):
            if names:
                raise ValueError(f"records: {problem} column {', '.join(sorted(names))} (seed {row.get('seed')})")
    table = pa.Table.from_arrays(
        [_column(field, [row.get(field.name) for row in rows]) for field in schema], schema=schema
    )
    folder = Path(run_dir) / kind
    folder.mkdir(parents=True, exist_ok=True)
    seeds = table["seed"].to_pylist()
    name = f"{min(seeds):08d}-{max(seeds):08d}"
    # a resumed run may fill gaps between the same first and last seed: that shard gets a name of its own
    shard, again = folder / f"{name}.parquet", 1
    while shard.exists():
        shard, again = folder / f"{name}.{again}.parquet", again + 1
    with replacing(shard) as part, open(part, "wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    return shard


def read(run_dir: str | Path, schema: pa.Schema = SCHEMA, kind: str = "records") -> pandas.DataFrame:
    """All rows of a run, sorted by seed; of several rows of one seed the last written (the image's own) is kept.

    A truncated shard is reported in one line and counts as missing. Raises ValueError for a shard of other columns.
    """
    import pandas as pd

    tables = [table for file in _shards(run_dir, kind) if (table := _load(file, schema)) is not None]
    table = pa.concat_tables([schema.empty_table(), *tables])
    frame = table.to_pandas()
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}  # else a null turns labels into floats
    for field in schema:
        if field.nullable and field.type in nullable:
            frame[field.name] = table[field.name].to_pandas(types_mapper=nullable.get)
    return frame.drop_duplicates("seed", keep="last").sort_values("seed", ignore_index=True)


def seeds_done(run_dir: str | Path, schema: pa.Schema = SCHEMA, kind: str = "records") -> set[int]:
    """Seeds that need no work: both their row and their whole image are on disk."""
    tables = [table for file in _shards(run_dir, kind) if (table := _load(file, schema, ["seed"])) is not None]
    seeds = {seed for table in tables for seed in table["seed"].to_pylist()}
    return {seed for seed in seeds if _whole(picture_path(run_dir, seed))}


def picture_path(run_dir: str | Path, seed: int) -> Path:
    """Returns the path of a seed's image."""
    return Path(run_dir) / "pictures" / f"{seed}.png"


def _column(field: pa.Field, values: list) -> pa.Array:
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    if not field.nullable and any(value is None for value in values):
        raise ValueError(f"records: column {field.name} is null but must hold {field.type}")
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"records: column {field.name} must hold {field.type}: {error}") from None


def _shards(run_dir: str | Path, kind: str = "records") -> list[Path]:
    """Shards in the order of their writing."""
    files = (Path(run_dir) / kind).glob("[!.]*.parquet")
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _load(file: Path, schema: pa.Schema = SCHEMA, columns: list[str] | None = None) -> pa.Table | None:
    try:
        shard = pq.ParquetFile(file)
        there = shard.schema_arrow.names
        if [name for name in schema.names if name in there or name not in LATER] != there:
            odd = sorted(set(there) ^ set(schema.names)) or ["another order"]
            raise ValueError(f"{file} holds other columns than this version writes: {', '.join(odd)}")
        table = shard.read(columns)
        for field in schema if columns is None else ():
            if field.name not in there:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.cast(schema if columns is None else pa.schema([schema.field(c) for c in columns]))
    except (pa.ArrowInvalid, OSError) as error:
        log.warning("%s is truncated, its samples count as missing: %s", file, str(error).splitlines()[0])
        return None


def _whole(picture: Path) -> bool:
    """Tells whether a PNG reaches its last chunk: a killed run may leave half of one."""
    try:
        with open(picture, "rb") as file:
            file.seek(-12, os.SEEK_END)
            return file.read(12)[4:8] == b"IEND"
    except OSError:  # absent, or shorter than 12 bytes
        return False
