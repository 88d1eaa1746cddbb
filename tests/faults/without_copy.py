"""Starts pretrain.py; the second process has no room in memory for a copy of what is saved."""

import pretrain
from pretraining.cli.errors import run_program
from pretraining.cli.launchers import process_rank
from pretraining.training import checkpoint_saver

if __name__ == "__main__":
    if process_rank() == 1:
        checkpoint_saver.ROOM_FOR_COPY = 0.0
    run_program(pretrain.main)
