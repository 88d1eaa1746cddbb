"""Starts pretrain.py; the second process has no room in memory for a copy of what is saved, and no disk is fast.

The first process lists no random states of the other: a network file system can show an old listing.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.checkpoint import async_saver as checkpoint_saver
from pretraining.training.checkpoint.async_saver import CheckpointSaver

write_parts, list_all = CheckpointSaver._write, Path.rglob
SECONDS = 0.4  # some steps


def write_later(saver: CheckpointSaver) -> None:
    """Nothing is written before a step that did not wait for it would have changed the weights."""
    time.sleep(SECONDS)
    write_parts(saver)


def list_as_before(folder: Path, pattern: str, **options: Any) -> Iterator[Path]:
    return (path for path in list_all(folder, pattern, **options) if path.name != "rng_state_1.pth")


if __name__ == "__main__":
    CheckpointSaver._write = write_later
    if process_rank() == 1:
        checkpoint_saver.MAX_COPY_FRACTION = 0.0
    else:
        Path.rglob = list_as_before
    run_program(pretrain.main)
