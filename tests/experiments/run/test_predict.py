"""Work under Lightning: over no more devices than there is work for, and an error is told by its own cause."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import BasePredictionWriter

from experiments.cli.main import main
from experiments.run import records
from experiments.run.predict import Bar, predict

CPU = {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}


class Module(L.LightningModule):
    """Fails where it is told to."""

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def setup(self, stage):
        if self.place == "before the start":
            raise ZeroDivisionError("the cause")

    def predict_step(self, batch, batch_idx):
        if self.place == "in a batch":
            raise ZeroDivisionError("the cause")
        return batch


class Writer(BasePredictionWriter):
    def write_on_batch_end(self, trainer, module, prediction, *_):
        if module.place == "in the writer":
            raise ZeroDivisionError("the cause")


@pytest.mark.parametrize("place", ["before the start", "in a batch", "in the writer"])
def test_nothing_hides_the_cause_of_a_failure(place):
    with pytest.raises(ZeroDivisionError, match="the cause"):
        predict(CPU, Module(place), [0, 1], Bar("label", 2, "items"), Writer("batch"), batch_size=1)


def test_one_missing_sample_is_drawn_on_one_of_two_devices(tmp_path):
    devices = ["trainer.accelerator=cpu", "trainer.devices=2"]
    quick = [*devices, "metrics.extractor=none", "sampler.steps=2", f"output_dir={tmp_path}"]
    for n in (1, 2):
        assert main([*quick, f"n_samples={n}"]) == 0
    assert list(records.read(tmp_path).seed) == [0, 1]
