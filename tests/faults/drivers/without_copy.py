"""Starts pretrain.py; the second process has no room in memory for a copy of what is saved, and no disk is fast."""

import time

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.checkpoint import async_saver as checkpoint_saver
from pretraining.training.checkpoint.async_saver import CheckpointSaver

write_parts = CheckpointSaver._write
SECONDS = 0.7  # some steps


def write_later(saver: CheckpointSaver) -> None:
    """Nothing is written before a step that did not wait for it would have changed the weights."""
    time.sleep(SECONDS)
    write_parts(saver)


if __name__ == "__main__":
    CheckpointSaver._write = write_later
    if process_rank() == 1:
        checkpoint_saver.MAX_COPY_FRACTION = 0.0
    run_program(pretrain.main)
