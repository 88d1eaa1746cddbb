"""Starts pretrain.py; from the end of step FIRST to that of step LAST, rank RANK can write less than it wants.

LIMITED is the JSON of [[RANK, FIRST, LAST, LIMIT], ...]: no files above LIMIT bytes, as on a full disk or beyond
a quota; or, where LIMIT is a folder, no new names in it.
"""

import json
import os
import resource
import subprocess
import sys
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.callbacks.checkpoint_rotation import CheckpointRotation

real_step_end = CheckpointRotation.on_step_end


def limit(what: int | str) -> None:
    if isinstance(what, str):
        subprocess.run(["chattr", "+i", what], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (what, resource.RLIM_INFINITY))


def lift(what: int | str) -> None:
    if isinstance(what, str):
        subprocess.run(["chattr", "-i", what], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def on_step_end(self: CheckpointRotation, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    for rank, first, last, what in json.loads(os.environ["LIMITED"]):
        if state.global_step in (first, last):
            self._trainer.saver.wait()  # all processes, so that the save before is over whatever happens now
            if args.process_index == rank:
                (limit if state.global_step == first else lift)(what)
    real_step_end(self, args, state, control, **kwargs)


if __name__ == "__main__":
    CheckpointRotation.on_step_end = on_step_end
    run_program(pretrain.main)
    sys.exit()
