"""Prediction of what is missing on disk, batch by batch under Lightning, on no more devices than there is work for."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, LambdaCallback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from experiments.config.build import component

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
IGNORED = ".*num_workers.*|.*does not have many workers.*|.*batch indices.*|.*treespec.*"


def progress(**options: Any) -> Progress:
    """A bar that counts, says how long is left, and takes a `note`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), **options)


class Trainer(L.Trainer):
    """Lightning's Trainer, and how many processes beside each device read and decode images.

    Args:
        num_workers: 0 reads in the process itself.
        options: Lightning's.
    """

    def __init__(self, num_workers: int = 0, **options: Any):
        self.num_workers = num_workers
        super().__init__(**options)

    __signature__ = inspect.Signature(
        [
            inspect.Parameter("num_workers", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=int),
            *list(inspect.signature(L.Trainer).parameters.values()),
        ]
    )


class Bar(Callback):
    """A progress bar that counts what all processes have made, with their speed."""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit, self.done = label, total, unit, 0

    @contextmanager
    def shown(self, visible: bool) -> Iterator[None]:
        """The bar around the work: whatever ends that, no hook is needed to close it, which could hide the cause."""
        with progress(disable=not visible) as self.progress:
            self.task = self.progress.add_task(self.label, total=self.total, note="")
            self.start = time.perf_counter()
            yield

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.add(self.made(outputs) * trainer.world_size)

    def add(self, count: int) -> None:
        """Counts what was made."""
        self.done = min(self.done + count, self.total)
        speed = self.done / (time.perf_counter() - self.start)
        self.progress.update(self.task, completed=self.done, note=f"{speed:.1f} {self.unit}/s{self.note()}")

    def made(self, outputs: Any) -> int:
        """Returns the number of items in a batch of this process."""
        return len(outputs)

    def note(self) -> str:
        """Returns the text that follows the speed."""
        return ""


def predict(
    trainer: dict[str, Any],
    module: L.LightningModule,
    missing: Sequence[int] | Dataset,
    bar: Bar,
    writer: BasePredictionWriter,
    **loading: Any,
) -> None:
    """Shows the module what is missing, and the writer what it makes of it.

    Args:
        trainer: the node; a device without a share would crash, so that there are at most as many as is missing.
        missing: at least one item.
        loading: keys of the DataLoader.
    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, where Lightning would exit: a sweep must end too.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) >= len(missing):
        return  # of an earlier call that had more to do
    callbacks: list[Callback] = [writer, bar]
    if threading.current_thread() is threading.main_thread():
        # Lightning's handler of SIGTERM takes a note that `predict` never reads: ours stays in its place
        ours = signal.getsignal(signal.SIGTERM)
        callbacks.append(LambdaCallback(on_predict_start=lambda *_: signal.signal(signal.SIGTERM, ours)))
    options = {"logger": False, "enable_progress_bar": False, "callbacks": callbacks}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", IGNORED)
        chosen = component(trainer | options)
        if chosen.num_devices > len(missing):
            ids = chosen.device_ids[: len(missing)]
            devices = ids if chosen.strategy.root_device.type == "cuda" else len(ids)  # CPUs have no numbers
            chosen = component(trainer | options | {"devices": devices})
        with bar.shown(chosen.is_global_zero):
            try:
                loading = {"num_workers": getattr(chosen, "num_workers", 0)} | loading
                chosen.predict(module, DataLoader(missing, **loading), return_predictions=False)
            except SystemExit as error:
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise
