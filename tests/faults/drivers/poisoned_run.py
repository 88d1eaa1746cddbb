"""Starts pretrain.py with a planted fault; takes its flags and launchers. A spike is found from step 13 on.

NAN_BLOCK=n makes the loss of training block n no number, CLEAN_BLOCKS=[n, ...] that of all others.
SKIPPED=[[start, stop], ...] leaves out positions of the order from the start, as a rollback does.
"""

import json
import os
import sys
from types import SimpleNamespace

import torch

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.callbacks import anomalies as fault_handler
from pretraining.training.data import splits as training_data
from pretraining.training.data.dataset import Item, MixedBlocks
from pretraining.training.metrics import spike_detector


class PoisonedBlocks(MixedBlocks):
    """Has a label in one block that no vocabulary has, which the loss below takes for NaN."""

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        is_clean = index in json.loads(os.environ["CLEAN_BLOCKS"]) if "CLEAN_BLOCKS" in os.environ else True
        if str(index) == os.environ.get("NAN_BLOCK") or not is_clean:
            item["sources"] = item["sources"] - 1000
        return item


def plant_nan() -> None:
    from pretraining.training.trainer import trainer

    real = trainer.token_losses
    compute_loss = trainer.PretrainingTrainer.compute_loss

    def poisoned_loss(self: object, model: object, inputs: dict[str, torch.Tensor], *rest: object, **more: object):
        is_poisoned = inputs["sources"][:, 0] < 0
        inputs["sources"] = inputs["sources"].clamp(min=0)
        factor = torch.where(is_poisoned, torch.nan, 1.0)[:, None, None]
        trainer.token_losses = lambda output, labels: real(SimpleNamespace(logits=output.logits * factor), labels)
        try:
            return compute_loss(self, model, inputs, *rest, **more)
        finally:
            trainer.token_losses = real  # evaluation and exports have other batches

    trainer.PretrainingTrainer.compute_loss = poisoned_loss
    training_data.MixedBlocks = PoisonedBlocks


def plant_skipped() -> None:
    fault_handler.callback_state = lambda *_: {"skipped": json.loads(os.environ["SKIPPED"])}


if __name__ == "__main__":
    spike_detector.MEDIAN_WINDOW, spike_detector.MIN_HISTORY = 8, 4
    plant_nan()
    if "SKIPPED" in os.environ:
        plant_skipped()
    run_program(pretrain.main)
    sys.exit()
