"""Starts pretrain.py; as on a network file system, the first process lists no random states of the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank

list_all = Path.rglob


def list_as_before(folder: Path, pattern: str, **options: Any) -> Iterator[Path]:
    return (path for path in list_all(folder, pattern, **options) if path.name != "rng_state_1.pth")


if __name__ == "__main__":
    if process_rank() == 0:
        Path.rglob = list_as_before
    run_program(pretrain.main)
