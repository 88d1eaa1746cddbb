"""What tools.supervise and the programs that it starts report to each other, in a folder that a variable names.

The supervisor describes a restart there, and each rank leaves its exit code there: torchrun exits with 1 whatever its
ranks exit with. On another machine that folder does not exist, and what is written there is lost; the restart comes
with the environment.
"""

import base64
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pretraining.errors import (
    CRASH_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    STOPPED_EXIT_CODE,
    TARGET_MISSED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    UserError,
)
from pretraining.system.launchers import (
    RESTART_VARIABLE,
    SUPERVISOR_VARIABLE,
    launcher_identity,
    meeting_dir,
    num_local_processes,
    process_age_seconds,
    process_rank,
)
from pretraining.system.processes import ProcessHandle, boot_id, machine_identity

# Of `torchrun --max_restarts`, which starts its processes again whatever they exit with: the number, and how often.
TORCHRUN_ATTEMPT_VARIABLE, TORCHRUN_RESTARTS_VARIABLE = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"
EXIT_SUFFIX = ".exit"
PROCESS_SUFFIX = ".process"
# After these no restart is of use, if all ranks of an attempt ended with them.
FINAL_CODES = (TARGET_MISSED_EXIT_CODE, STOPPED_EXIT_CODE, INTERRUPTED_EXIT_CODE)


def boot_seconds() -> float:
    """Seconds since this machine was booted, by a clock that cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


CLOCK_OFFSET = time.time() - boot_seconds()  # at the start: the wall clock can be set while a run trains


@dataclass(frozen=True)
class Restart:
    """An attempt after the first: its number from 1, why the one before ended, and when the first one started."""

    number: int
    reason: str
    started_at: float  # seconds since boot
    clock_offset: float = CLOCK_OFFSET  # of the wall clock at that time
    boot_id: str = field(default_factory=boot_id)  # of the machine whose clock this is


def attempt_environment(folder: Path, restart: Restart | None) -> dict[str, str]:
    """What the processes of the next attempt find in their environment; the exit codes of the last one are removed."""
    for path in (*folder.glob(f"*{EXIT_SUFFIX}"), *folder.glob(f"*{PROCESS_SUFFIX}")):
        path.unlink()
    if restart is None:
        return {SUPERVISOR_VARIABLE: str(folder)}
    described = json.dumps(asdict(restart))
    # No shell on the way to another machine finds a special character in it.
    encoded = base64.urlsafe_b64encode(described.encode()).decode().rstrip("=")
    return {SUPERVISOR_VARIABLE: str(folder), RESTART_VARIABLE: encoded}


def this_restart() -> Restart | None:
    """The restart that this process belongs to, by its supervisor or torchrun; None in the first attempt."""
    if SUPERVISOR_VARIABLE not in os.environ:
        return _restart_by_torchrun()
    encoded = os.environ.get(RESTART_VARIABLE)
    if encoded is None:
        return None
    restart = Restart(**json.loads(base64.urlsafe_b64decode(encoded + "==")))
    if restart.boot_id == boot_id():
        return restart
    # The clock of another machine: the wall clock is the same, to seconds.
    return replace(restart, started_at=restart.started_at + restart.clock_offset - CLOCK_OFFSET)


def absence_exit_code() -> int:
    """The exit code when not all processes come: a user error at a first start, a crash to retry in a restart.

    After a machine has died it may take minutes until it is back.
    """
    return USER_ERROR_EXIT_CODE if this_restart() is None else CRASH_EXIT_CODE


def _restart_by_torchrun() -> Restart | None:
    """What `torchrun --max_restarts` makes; its own process is as old as the run."""
    number = int(os.environ.get(TORCHRUN_ATTEMPT_VARIABLE) or 0)
    if number == 0:
        return None
    started_at = boot_seconds() - process_age_seconds(os.getppid())
    return Restart(number, "torchrun started the processes again", started_at)


def run_age_seconds() -> float:
    """Seconds since this run started, which is the start of its first attempt."""
    restart = this_restart()
    return process_age_seconds() if restart is None else boot_seconds() - restart.started_at


def run_started_at() -> float:
    """When this run started, for comparison with times of files: by the wall clock as it was then or is now.

    It is the earlier of both: no file of a run is taken for one from before, even if the clock was set meanwhile.
    """
    restart, now = this_restart(), boot_seconds()
    offset = CLOCK_OFFSET if restart is None else restart.clock_offset
    return now - run_age_seconds() + min(offset, time.time() - now)


def record_exit_code(exit_code: int) -> None:
    """Leave the exit code of this rank where its supervisor, or the next attempt of torchrun, looks for it."""
    folders = [Path(os.environ[SUPERVISOR_VARIABLE])] if SUPERVISOR_VARIABLE in os.environ else []
    for folder in [*folders, *_torchrun_attempt(0)]:
        with suppress(OSError):  # the supervisor was killed
            path = folder / f"{process_rank()}{EXIT_SUFFIX}"
            path.write_text(f"{exit_code} {num_local_processes()} {_launcher()}", encoding="utf-8")


def final_exit_code() -> int | None:
    """The exit code of the attempt before this one of torchrun, if no attempt should have followed; else None."""
    codes = [recorded_exit_code(folder) for folder in _torchrun_attempt(-1)]
    return next((code for code in codes if code in (USER_ERROR_EXIT_CODE, *FINAL_CODES)), None)


def _torchrun_attempt(offset: int) -> list[Path]:
    """The folder for the exit codes of this attempt of `torchrun --max_restarts`, or of one before it."""
    number = int(os.environ.get(TORCHRUN_ATTEMPT_VARIABLE) or 0) + offset
    if not 0 <= number < int(os.environ.get(TORCHRUN_RESTARTS_VARIABLE) or 0):  # no attempt follows the last one
        return []
    with suppress(OSError, UserError):
        folder = meeting_dir() / f"attempt-{number}"
        folder.mkdir(exist_ok=True)
        return [folder]
    return []


def forget_exit_codes() -> None:
    """Remove what an earlier program of this attempt left, as of `preprocess.py ...; deepspeed pretrain.py ...`.

    That is the code of this rank, and those of other launchers: an earlier program can have had more ranks. A rank of
    this launcher may have ended already.
    """
    if SUPERVISOR_VARIABLE not in os.environ:
        return
    for path in Path(os.environ[SUPERVISOR_VARIABLE]).glob(f"*{EXIT_SUFFIX}"):
        with suppress(OSError):  # another rank removed it
            is_own = path.stem == str(process_rank())
            words = path.read_text(encoding="utf-8").split()  # none while another rank of this launcher writes
            if is_own or words[2:] not in ([], [_launcher()]):
                path.unlink()


def register_process() -> None:
    """Register as a rank of the supervisor on this machine; sshd may be between the two."""
    if SUPERVISOR_VARIABLE in os.environ:
        with suppress(OSError):
            path = Path(os.environ[SUPERVISOR_VARIABLE]) / f"{process_rank()}{PROCESS_SUFFIX}"
            path.write_text(f"{ProcessHandle.of(os.getpid())} {machine_identity()}", encoding="utf-8")


def registered_processes(folder: Path) -> list[ProcessHandle]:
    """The ranks on this machine that have registered and still run."""
    found = []
    for path in folder.glob(f"*{PROCESS_SUFFIX}"):
        process, _, machine = path.read_text(encoding="utf-8").partition(" ")
        if machine == machine_identity():  # empty while it is written
            pid, started = process.split("-")
            found.append(ProcessHandle(int(pid), started))
    return [process for process in found if process.is_alive()]


def _launcher() -> str:
    with suppress(OSError):
        return launcher_identity()
    return "elsewhere"  # outside of the process namespace of a container


def recorded_exit_code(folder: Path) -> int | None:
    """The exit code that the ranks of an attempt agree on, None when they recorded none or not all the same kind.

    One user error is enough. A stop or a missed target counts only if it is that of every rank of this machine: after
    a crash launchers have the other ranks stop.
    """
    records = [path.read_text(encoding="utf-8").split() for path in folder.glob(f"*{EXIT_SUFFIX}")]
    codes = [int(words[0]) for words in records]
    if USER_ERROR_EXIT_CODE in codes:
        return USER_ERROR_EXIT_CODE
    failures = [code for code in codes if code not in (0, *FINAL_CODES)]
    if failures:
        return failures[0]
    is_complete = bool(records) and len(records) >= int(records[0][1])
    return max(codes) if is_complete else None
