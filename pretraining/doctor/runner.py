"""All checks, each run in a separate process so that none can end the doctor or block it.

The findings of a check that fails or is cut off are kept. A check has its own limit in seconds, and never more
than the doctor has left. Nothing waits for a killed process: one that hangs in a dead network disk cannot be killed.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pretraining.doctor import all_reduce, devices, disk, environment, host, hub, leftovers, software, speed
from pretraining.doctor.finding import Check, Finding
from pretraining.system.formatting import shorten

TOTAL_SECONDS = 57.0  # of 60: Python's start and end come on top
GRACE_SECONDS = 1.0  # a check whose parent was killed ends itself after this
MIN_SECONDS = 0.3
MAX_ERROR_CHARACTERS = 160
RETRY = "python3 -m tools.doctor"
# A disk that reads 100 MB/s, below which the check of the disk warns, brings 2.5 GB of libraries in this time. Later
# imports find them in memory and are given 4 s, those of 8 processes at once 6 s.
IMPORT_SECONDS = 25.0
# For each of 8 GPUs 3 s: it is opened, cuBLAS starts, and three measurements take 0.2 s each.
SPEED_SECONDS = 4.0 + 8 * 3.0
ALL_REDUCE_SECONDS = 4.0 + 6.0 + all_reduce.LIMIT_SECONDS
# In the order they run: the quick ones first, those that may hang last. Limits are less than half of the total, so that
# one check that hangs leaves time for the others.
CHECKS = [
    Check("software", "python", software.python_version),
    Check("software", "requirements.txt", software.requirements),
    Check("software", "requirements.lock", software.lock),
    Check("software", "deepspeed", software.launcher),
    Check("software", "mpirun", software.mpi_launcher),
    Check("software", "pynvml", software.pynvml_owner),
    Check("software", "torch", software.torch_build, IMPORT_SECONDS),
    Check("software", "compilers", software.compilers),
    Check("software", "environment", environment.variables),
    Check("software", "encoding", environment.encoding),
    Check("host", "cores", host.cores),
    Check("host", "memory", host.memory),
    Check("host", "shared memory", host.shared_memory),
    Check("host", "limits", host.limits),
    Check("host", "control group", host.control_group),
    Check("host", "port", leftovers.launcher_port),
    Check("host", "stale processes", leftovers.stale_processes),
    Check("host", "extension locks", leftovers.extension_locks),
    Check("disk", "disk", disk.run_folders, 10.0),
    Check("disk", "temporary folder", disk.temporary_folder),
    Check("disk", "Hub cache", disk.hub_cache),
    Check("Hub", "Hub", hub.hub, 7.0),
    Check("GPUs", "GPUs", devices.gpus, 6.0),
    Check("GPUs", "GPU links", devices.links),
    Check("GPUs", "GPU processes", devices.processes),
    Check("speed", "arithmetic", speed.speed, SPEED_SECONDS),
    Check("speed", "all-reduce", all_reduce.all_reduce, ALL_REDUCE_SECONDS),
]


def run_checks(
    checks: Sequence[Check], folders: Sequence[Path], *, total_seconds: float = TOTAL_SECONDS
) -> Iterator[Finding]:
    """Findings of all checks, each as soon as it is found; `folders` are those that the disk checks test."""
    deadline = time.monotonic() + total_seconds
    for check in checks:
        seconds = min(check.limit_seconds, deadline - time.monotonic())
        if seconds < MIN_SECONDS:
            yield _unchecked(check, f"no time left of {total_seconds:.0f} s")
        else:
            yield from _run_check(check, folders, seconds)


def _run_check(check: Check, folders: Sequence[Path], limit_seconds: float) -> Iterator[Finding]:
    # fork: the parent is light and has no threads, so a process costs milliseconds.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    started_at = time.monotonic()
    process = context.Process(target=_run_in_child, args=(check, folders, sender, limit_seconds), daemon=True)
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, started_at + limit_seconds - time.monotonic())):
            finding = receiver.recv()
            if finding is None:
                return
            yield finding
        yield _unchecked(check, f"no answer within {limit_seconds:.0f} s", seconds=limit_seconds)
    except EOFError:
        process.join(GRACE_SECONDS)
        yield _unchecked(check, f"its process ended with {process.exitcode}", seconds=time.monotonic() - started_at)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that it started
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.join(GRACE_SECONDS)


def _run_in_child(check: Check, folders: Sequence[Path], sender: Connection, limit_seconds: float) -> None:
    """The child process: what libraries print is dropped; findings go through the pipe, and None after the last."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(math.ceil(limit_seconds + GRACE_SECONDS))
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)
    started_at = time.monotonic()
    try:
        for finding in check.function(folders):
            now = time.monotonic()
            sender.send(dataclasses.replace(finding, group=check.group, seconds=now - started_at))
            started_at = now
    except BaseException as error:  # a library may even call sys.exit
        text = shorten(f"{type(error).__name__}: {error}", MAX_ERROR_CHARACTERS)
        sender.send(_unchecked(check, text, fix=software.INSTALL if isinstance(error, ImportError) else RETRY))
    sender.send(None)


def _unchecked(check: Check, reason: str, *, seconds: float = 0.0, fix: str = RETRY) -> Finding:
    figure = f"could not be checked ({reason})"
    return Finding(check.name, "warning", figure, fix, group=check.group, seconds=seconds)
