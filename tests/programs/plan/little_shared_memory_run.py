"""Starts pretrain.py on a machine with 1 MB of shared memory: in a mount name space of this process alone."""

import ctypes
import os
import subprocess

import pretrain
from pretraining.cli.program import run_program

CLONE_NEWNS = 0x20000  # os.unshare is of Python 3.12


def mount_little() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/dev/shm"], check=True)


if __name__ == "__main__":
    mount_little()
    run_program(pretrain.main)
