"""Embedding on a cluster by Ray Data: each block is written by the worker that described it, where all can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amg.bank import TrainingBank
from amg.bank.vectors import StoredVectors
from amg.similarity.base import by_descriptor
from experiments.config.build import component
from experiments.config.schema import RunConfig
from experiments.run.predict import Bar


class Describe:
    """A worker: opens the bank, builds the descriptor once, then describes blocks and writes them."""

    def __init__(self, node: dict[str, Any], nth: int, path: str, size: tuple[int, int] | None, cuda: bool):
        self.place = "cuda" if cuda else "cpu"
        self.bank = TrainingBank.open(path, size)
        self.one = by_descriptor(component(node, bank=self.bank, device=self.place))[nth].training
        self.stored = self.bank.stored(self.one)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        done = []
        for block in batch["block"].tolist():
            rows = self.stored.rows(block)
            vectors = self.bank.describe(self.one, rows, torch.device(self.place), torch.float32)
            self.stored.write(block, vectors)
            done.append(len(vectors))
        return {"images": done}


def embed(
    run: RunConfig,
    key: str,
    nth: int,
    bank: TrainingBank,
    stored: StoredVectors,
    blocks: Sequence[int],
    address: str | None,
    bar: Bar,
) -> None:
    """Describes and writes blocks on all workers of a cluster; what is written stays if it is killed.

    Args:
        key, nth: of the configuration, and the descriptor's number in it.
        address: of the cluster, "auto" for the one that this machine belongs to; None starts one here.
    Raises:
        ImportError, ValueError: without Ray, or for a bank that other processes cannot open.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("task.engine=ray: Ray Data is not installed: pip install 'ray[data]'") from None
    if bank.folder is None:
        raise ValueError("task.engine=ray: needs a bank that all workers can open: task.out=<folder> keeps it")
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    cuda = ray.cluster_resources().get("GPU", 0) >= 1
    workers = int(ray.cluster_resources()["GPU" if cuda else "CPU"])
    # on CPUs a part of them has to be left to whoever hands out the blocks
    most = max(1, min(len(blocks), workers if cuda else workers // 2))
    found = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks)).map_batches(
        Describe,
        fn_constructor_args=(getattr(run, key), nth, str(bank.folder.absolute()), bank.size, cuda),
        batch_size=1,
        num_gpus=1 if cuda else 0,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
    )
    with bar.shown(True):
        for batch in found.iter_batches(batch_size=1):
            bar.add(int(batch["images"].sum()))
