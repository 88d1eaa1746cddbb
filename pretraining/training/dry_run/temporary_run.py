"""The folder of --profile_plan, which no end of its run leaves behind, and memory that runs out in it."""

import glob
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError
from pretraining.runs.claim import is_being_written
from pretraining.system.launchers import process_rank
from pretraining.system.processes import ProcessHandle

# Between the name of the run folder and the process that starts the measurement; of each host, whose processes differ.
FOLDER_MARK = f".profile-{socket.gethostname()}-"
# Of CUDA's allocator, its libraries, the CPU's allocator and Python's own.
OOM_PATTERNS = (
    "out of memory",
    "OutOfMemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MemoryError",
    "can't allocate memory",
    "Cannot allocate memory",
)


class ProfileMemoryError(UserError):
    """The steps of --profile_plan do not fit, maybe on this process only; its text has one of `OOM_PATTERNS`."""


@contextmanager
def temporary_folder(arguments: PretrainArguments, run_dir: Path) -> Iterator[None]:
    """With --profile_plan, remove the folder of the run at its end, however it ends, and those that kills have left.

    Raises:
        ProfileMemoryError: in place of the error of an allocator.
    """
    if not arguments.plan.profile_plan:
        yield
        return
    removes = process_rank() == 0  # after it has read the log; a process that fails alone removes it by itself
    if removes:
        _remove_leftovers(run_dir)
    try:
        yield
    except BaseException as error:
        removes = True
        if not isinstance(error, UserError) and is_out_of_memory(f"{type(error).__name__}: {error}"):
            raise ProfileMemoryError(
                "--profile_plan: out of memory; use a smaller --per_device_train_batch_size or "
                "--activation_checkpointing (--dry_run lists what fits)"
            ) from error
        raise
    finally:
        if removes:
            shutil.rmtree(run_dir, ignore_errors=True)


def is_out_of_memory(text: str) -> bool:
    """Whether an error, or the log of a failed trial, is about memory that ran out."""
    return any(pattern in text for pattern in OOM_PATTERNS)


def _remove_leftovers(run_dir: Path) -> None:
    """Remove the folders of measurements of the same run whose processes are gone."""
    name = run_dir.name.rpartition(FOLDER_MARK)[0]
    for folder in run_dir.parent.glob(f"{glob.escape(name + FOLDER_MARK)}*"):
        pid, _, started = folder.name.removeprefix(name + FOLDER_MARK).partition("-")
        is_alive = pid.isdecimal() and ProcessHandle(int(pid), started).is_alive()
        if folder != run_dir and started.isdecimal() and not is_alive and not is_being_written(folder):
            shutil.rmtree(folder, ignore_errors=True)
