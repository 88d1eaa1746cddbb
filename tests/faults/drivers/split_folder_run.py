"""Starts pretrain.py in a working folder of each rank, FOLDERS/RANK, as machines with disks of their own have it.

With LATE, the run folder of rank 1 becomes that of rank 0 half a second after it was first looked for, as in the cache
of a network file system; without, a process looks for one second only. Without FOLDERS, the working folder stays.
"""

import os
from pathlib import Path
from threading import Timer

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank
from pretraining.training.config import resume as resuming

FOLDERS = Path(os.environ.get("FOLDERS", ""))


def see_late() -> None:
    sees, run_dir = resuming._sees, FOLDERS / "1/run"

    def share() -> None:
        link = run_dir.with_name("link")
        link.symlink_to(FOLDERS / "0/run")
        run_dir.rmdir()
        link.rename(run_dir)

    def sees_late(path: Path, token: str) -> bool:
        Timer(0.5, share).start()
        return sees(path, token)

    resuming._sees = sees_late


if __name__ == "__main__":
    if "FOLDERS" in os.environ:
        os.chdir(FOLDERS / str(process_rank()))
    if "LATE" not in os.environ:
        resuming.VISIBLE_WITHIN_SECONDS = 1.0
    elif process_rank() == 1:
        see_late()
    run_program(pretrain.main)
