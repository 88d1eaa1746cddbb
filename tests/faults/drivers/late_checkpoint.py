"""Starts pretrain.py; another run finishes a checkpoint, LATE, while this one waits for the run folder."""

import os
import sys
from pathlib import Path

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.config import resume as resuming

real_lock = resuming.lock_run_folder


def lock_run_folder(run_dir: Path) -> None:
    late = Path(os.environ["LATE"])
    late.rename(run_dir / late.name)
    real_lock(run_dir)


if __name__ == "__main__":
    resuming.lock_run_folder = lock_run_folder
    run_program(pretrain.main)
    sys.exit()
