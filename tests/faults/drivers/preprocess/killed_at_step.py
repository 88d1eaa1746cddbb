"""Runs a program that is killed at its n-th change of the disk: python killed_at_step.py N program.py --flags

A change is whatever makes something durable or known by its name: fsync, rename, removal, a new folder. Under mpirun
only the rank named by KILLED_RANK is killed. DO, a line of Python, is done in place of the kill.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")

steps_left = int(sys.argv[1])


def dying_at_the_last_step(name: str) -> None:
    real = getattr(os, name)

    def change(*args: Any, **kwargs: Any) -> Any:
        global steps_left
        steps_left -= 1
        if steps_left == 0:
            if "DO" in os.environ:
                exec(os.environ["DO"])
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, change)


if os.environ.get("OMPI_COMM_WORLD_RANK") == os.environ.get("KILLED_RANK"):
    for name in CHANGES:
        dying_at_the_last_step(name)
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
runpy.run_path(sys.argv[0], run_name="__main__")
