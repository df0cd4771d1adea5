"""One array on disk that is filled block by block, by one process or many, and read memory-mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HEAD = 4096
"""Bytes before the first value: a page, so that no two blocks share one."""


class Blocks:
    """`<name>.npy` and `<name>.done`, a byte for each block: 1 where the block is written to its end.

    The room is taken at once, so that a disk that is too small is told before anything is computed. A block counts when
    it is on disk; whoever is killed goes on with the others, and several processes may write different blocks.

    Args:
        file: the `.npy` file.
        dtype, shape: of the array; its first axis is divided into blocks of `block` rows.
    """

    def __init__(self, file: Path, dtype: np.dtype | type, shape: tuple[int, ...], block: int):
        self.file, self.dtype, self.shape, self.block = file, np.dtype(dtype), shape, block
        self.done = file.with_suffix(".done")

    def __len__(self) -> int:
        return -(-self.shape[0] // self.block)

    def rows(self, number: int) -> slice:
        """The rows of a block."""
        return slice(number * self.block, min((number + 1) * self.block, self.shape[0]))

    def missing(self) -> list[int]:
        """Blocks that are still to be written."""
        if not self.done.is_file():
            return list(range(len(self)))
        done = np.fromfile(self.done, np.uint8)
        return [number for number in range(len(self)) if number >= len(done) or not done[number]]

    def allocate(self, before: int = 0) -> None:
        """Takes the room of the array; of one that has grown, of its new rows.

        Args:
            before: rows that it had; a last block that was not full is written again.
        Raises:
            OSError: where the disk is too small.
        """
        from filelock import FileLock

        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.file.with_suffix(".lock")):
            if self.done.is_file() and self.done.stat().st_size == len(self) and before in (0, self.shape[0]):
                return
            total = HEAD + int(np.prod(self.shape)) * self.dtype.itemsize
            with open(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as out:
                old = os.fstat(out.fileno()).st_size
                try:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(out.fileno(), 0, total)
                    else:
                        out.truncate(total)
                    out.write(self._head())
                except OSError:
                    os.ftruncate(out.fileno(), old)
                    raise
            done = np.fromfile(self.done, np.uint8) if self.done.is_file() else np.zeros(0, np.uint8)
            done = np.pad(done, (0, max(0, len(self) - len(done))))[: len(self)]
            if before % self.block:
                done[before // self.block] = 0
            done.tofile(self.done)

    def write(self, number: int, values: np.ndarray) -> None:
        """Writes one block."""
        rows = self.rows(number)
        if values.shape != (rows.stop - rows.start, *self.shape[1:]):
            raise ValueError(f"{self.file}: block {number} is {values.shape}, expected {self.shape[1:]} a row")
        data = memoryview(np.ascontiguousarray(values, self.dtype)).cast("B")
        place = HEAD + rows.start * int(np.prod(self.shape[1:])) * self.dtype.itemsize
        for name, content, where in ((self.file, data, place), (self.done, memoryview(b"\1"), number)):
            out = os.open(name, os.O_RDWR)
            try:
                while content:
                    written = os.pwrite(out, content, where)
                    content, where = content[written:], where + written
                os.fsync(out)
            finally:
                os.close(out)

    def load(self, random: bool = False) -> Tensor:
        """The array, memory-mapped.

        Args:
            random: rows will be asked for here and there, so that nothing around them is read ahead.
        Raises:
            ValueError: for a file of another size.
        """
        try:
            # nothing is ever written to it, but torch wants what it wraps writable
            values = np.load(self.file, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"data.cache: {self.file} cannot be read ({error}): delete its folder") from None
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(
                f"data.cache: {self.file} holds {values.dtype} {values.shape}, expected {self.dtype} {self.shape}: "
                "delete its folder to have it made anew"
            )
        if random and hasattr(mmap, "MADV_RANDOM"):
            values._mmap.madvise(mmap.MADV_RANDOM)
        return torch.from_numpy(values)

    def _head(self) -> bytes:
        """The header of the `.npy` format, filled up to HEAD bytes."""
        text = repr({"descr": self.dtype.str, "fortran_order": False, "shape": self.shape})
        start = b"\x93NUMPY\x01\x00" + (HEAD - 10).to_bytes(2, "little")
        return start + text.encode().ljust(HEAD - 11) + b"\n"
