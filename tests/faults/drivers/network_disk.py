"""Starts pretrain.py; the second process has no room in memory for a copy of what is saved, and no disk is fast.

What is saved is written when its process waits for it, or as late as the next save. The first process lists no random
states of the other: a network file system can show an old listing.
"""

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.checkpoint import async_saver as checkpoint_saver
from pretraining.training.checkpoint.async_saver import CheckpointSaver

write_parts, wait_for_parts, list_all = CheckpointSaver._write, CheckpointSaver.wait, Path.rglob
somebody_waits = Event()


def wait(saver: CheckpointSaver) -> None:
    if saver.is_writing:
        somebody_waits.set()
    wait_for_parts(saver)


def write_later(saver: CheckpointSaver) -> None:
    """Nothing is written before a step that did not wait for it would have changed the weights."""
    somebody_waits.wait()
    somebody_waits.clear()
    write_parts(saver)


def list_as_before(folder: Path, pattern: str, **options: Any) -> Iterator[Path]:
    return (path for path in list_all(folder, pattern, **options) if path.name != "rng_state_1.pth")


if __name__ == "__main__":
    CheckpointSaver._write, CheckpointSaver.wait = write_later, wait
    if process_rank() == 1:
        checkpoint_saver.MAX_COPY_FRACTION = 0.0
    else:
        Path.rglob = list_as_before
    run_program(pretrain.main)
