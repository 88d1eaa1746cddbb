"""Run a command in a new process and measure all of it: seconds from start to exit, peak memory of its process tree.

Memory is the sum of PSS (proportional set size: pages shared by several processes count once, mapped files count too)
over the processes of the command's session, read from /proc/PID/smaps_rollup every 50 ms, or less often where reading
takes long: at most one twentieth of the time goes into it. A shorter peak can be missed.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
SAMPLING_SHARE = 0.05
LIMIT_SECONDS = 3600.0  # a program whose worker died can wait for it forever


@dataclass(frozen=True)
class Usage:
    """Time, peak memory and CPU time of a command, with all its processes."""

    seconds: float
    peak_bytes: int
    exit_code: int
    cpu_seconds: float = 0.0


def run_measured(command: Sequence[str], *, cwd: Path, environment: dict[str, str], log_path: Path) -> Usage:
    """Run `command` with its output in `log_path`; after an hour, kill all its processes."""
    with log_path.open("wb") as log:
        started_at, cpu_before = time.perf_counter(), _cpu_of_children()
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        sampler = _MemorySampler(process.pid)
        sampler.start()
        exit_code = _wait(process)
        seconds = time.perf_counter() - started_at
        sampler.stop()
    return Usage(seconds, sampler.peak_bytes, exit_code, _cpu_of_children() - cpu_before)


def _cpu_of_children() -> float:
    """User and system seconds of processes that ended, if each was waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


class _MemorySampler(threading.Thread):
    """Record the peak memory of a session until it is stopped."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._session = session
        self._stopped = threading.Event()

    def run(self) -> None:
        pause_seconds = 0.0
        while not self._stopped.wait(pause_seconds):
            started_at = time.perf_counter()
            self.peak_bytes = max(self.peak_bytes, session_bytes(self._session))
            pause_seconds = max(SAMPLE_SECONDS, (time.perf_counter() - started_at) / SAMPLING_SHARE)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def session_bytes(session: int) -> int:
    """PSS of all processes of a session, in bytes."""
    return sum(_process_bytes(int(path.name), session) for path in Path("/proc").glob("[0-9]*"))


def _process_bytes(pid: int, session: int) -> int:
    try:
        if os.getsid(pid) != session:
            return 0
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (ProcessLookupError, FileNotFoundError, PermissionError):  # it ended in the meantime
        pass
    return 0
