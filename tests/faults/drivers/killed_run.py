"""Starts pretrain.py and kills its processes without a warning; takes its flags and launchers.

KILL is the JSON of [RANKS, SECONDS, CHANGE]: those ranks die so many seconds after the training began, or, in the save
of a checkpoint, at the so many-th change of the disk: an fsync, a new name, a removal, a folder.
"""

import json
import os
import signal
import sys
from threading import Timer
from typing import Any

from transformers import TrainerCallback

import pretrain
from pretraining.cli.program import run_program
from pretraining.training import run as program

CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(name: str, changes_left: list[int]) -> None:
    real = getattr(os, name)

    def change(*args: Any, **kwargs: Any) -> Any:
        changes_left[0] -= 1
        if changes_left[0] == 0:
            die()
        return real(*args, **kwargs)

    setattr(os, name, change)


class Killer(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ranks, seconds, change = json.loads(os.environ["KILL"])
        if args.process_index not in ranks:
            return
        if seconds is not None:
            timer = Timer(seconds, die)
            timer.daemon = True
            timer.start()
        else:
            changes_left = [change]
            for name in CHANGES:
                dying_at(name, changes_left)


if __name__ == "__main__":
    make_trainer = program.make_trainer

    def make_doomed(*args: Any) -> Any:
        trainer = make_trainer(*args)
        trainer.add_callback(Killer())
        return trainer

    program.make_trainer = make_doomed
    run_program(pretrain.main)
    sys.exit()
