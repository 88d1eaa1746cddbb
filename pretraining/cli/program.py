"""The frame of every program: user errors as one line each, exit codes, tracebacks of crashes."""

import contextlib
import errno
import gc
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from pretraining.cli.logs import setup_logging
from pretraining.errors import CRASH_EXIT_CODE, INTERRUPTED_EXIT_CODE, UserError
from pretraining.system.files import cache_dir
from pretraining.system.launchers import check_launch_variables, local_rank, process_rank
from pretraining.system.machines.meeting import share_crash, shared
from pretraining.system.machines.slurm import adopt_slurm_task
from pretraining.system.supervision import final_exit_code, forget_exit_codes, record_exit_code, register_process
from pretraining.system.torch_environment import share_cores, use_expandable_segments, use_reproducible_kernels

logger = logging.getLogger(__name__)

RANK0_GRACE_SECONDS = 5.0  # launchers poll their processes once a second
READER_GONE_EXIT_CODE = 141  # 128 + SIGPIPE, as of any command before `| head`
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# Called with the exit code and the message when this process ends by itself; must not block.
EXIT_LISTENERS: list[Callable[[int, str], None]] = []
# Of reading as well as of writing.
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


@contextlib.contextmanager
def renaming_flag(name: str) -> Iterator[None]:
    """Name another flag instead of --data_files in a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(*(problem.replace("--data_files", name) for problem in error.problems)) from None


@contextlib.contextmanager
def importing_libraries() -> Iterator[None]:
    """Import large libraries without garbage collections, and leave what they made out of all later ones.

    None of it is garbage, but each collection visits all of it: on a CPU, 1.2 s of the 6.3 s that the imports of a
    training process took, and 0.4 s of each full collection of a run.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` on the command line; a `UserError` becomes one line for each problem and exit code 2.

    A crash ends the process at once, too: Python would wait for workers of a DataLoader, which ignore SIGTERM.
    """
    adopt_slurm_task()
    setup_logging()
    forget_exit_codes()
    register_process()
    use_reproducible_kernels()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: any text can be printed in any locale
    try:
        _run(main)
    except KeyboardInterrupt:
        logger.warning("interrupted")
        exit_process(INTERRUPTED_EXIT_CODE)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone(1):
            os._exit(READER_GONE_EXIT_CODE)  # the buffer of stdout cannot be flushed
        user_error = _as_user_error(error)
        if user_error is not None and "--debug" not in sys.argv:
            user_error = shared(user_error)
            _report(user_error)
            exit_process(user_error.exit_code)
        sys.excepthook(type(error), error, error.__traceback__)
        share_crash(error)
        exit_process(CRASH_EXIT_CODE)


def _run(main: Callable[[Sequence[str]], None]) -> None:
    try:
        check_launch_variables()
        _leave_again()
        share_cores()  # before anything imports torch
        use_expandable_segments()
        main(sys.argv[1:])
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # a closed pipe is noticed here, not during Python's shutdown


def _leave_again() -> None:
    """Exit if torchrun has started a program again that was stopped on request or has found a user error."""
    if (exit_code := final_exit_code()) is not None:
        if process_rank() == 0:
            logger.warning(
                "torchrun --max_restarts starts a run again that has ended with exit code %d: ending; tools.supervise "
                "restarts only after crashes",
                exit_code,
            )
        else:
            record_exit_code(exit_code)  # now: the exit of rank 0 makes torchrun kill this process
            time.sleep(RANK0_GRACE_SECONDS)
        exit_process(exit_code)


def _reader_is_gone(descriptor: int) -> bool:
    """Whether a pipe of ours has lost its reader; other pipes, such as those of worker processes, may break as well."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _as_user_error(error: Exception) -> UserError | None:
    """What the user can fix: a `UserError`, a full disk, a path without permission; None for a crash."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return UserError(f"{place}cannot be written ({error.strerror}); {_remedy(error.filename, 'folder')}")
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename:
        return UserError(f"{error.filename}: cannot be used ({error.strerror}); {_remedy(error.filename, 'path')}")
    return error if isinstance(error, UserError) else None


def _remedy(path: str | None, kind: str) -> str:
    """What to do about a path that cannot be used; the cache has no flag."""
    with contextlib.suppress(UserError):
        if path and (Path(path).is_relative_to(cache_dir()) or cache_dir().is_relative_to(path)):
            return "fix it, or set XDG_CACHE_HOME to a writable folder"
    return f"fix it, or choose another {kind}"


def _report(error: UserError) -> None:
    # Most errors are found by every rank; the exit of a machine's first makes the launcher end the others meanwhile.
    # They end with the code of the error: srun returns the highest of all.
    if local_rank() > 0:
        signal.signal(signal.SIGTERM, lambda *_: exit_process(error.exit_code))
        time.sleep(RANK0_GRACE_SECONDS)
    for problem in error.problems:
        logger.error(problem)


def exit_process(exit_code: int) -> NoReturn:
    """End this process without Python's shutdown, which can hang or crash on the threads of a process group.

    Those wait for ranks that are ending as well; and a gloo thread that frees its last tensor during the shutdown
    aborts the process (torch 2.13: 1 of 8 runs of two ranks ended with SIGABRT).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    _leave(exit_code, "")


def hard_exit(message: str, exit_code: int) -> NoReturn:
    """End this process from another thread, whatever its main thread does; an empty message is not written."""
    if message:
        with contextlib.suppress(OSError):  # mpirun holds the other end of stderr, and may be what died
            os.write(2, f"error: {message}\n".encode())  # the log's lock may be held forever
    _leave(exit_code, message)


def _leave(exit_code: int, message: str) -> NoReturn:
    for listener in EXIT_LISTENERS:
        listener(exit_code, message)
    record_exit_code(exit_code)
    os._exit(exit_code)
