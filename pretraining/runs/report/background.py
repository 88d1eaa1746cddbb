"""The report of a run that trains, written by a process of its own, which takes only the time that nobody wants.

    python3 -m pretraining.runs.report.background PARENT RUN_FOLDER

It needs no torch, so it starts in a moment, and it ends with its parent, however that ends.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from pretraining import PROJECT_DIR
from pretraining.system.launchers import LOCAL_RANK_VARIABLES, LOCAL_SIZE_VARIABLES, RANK_VARIABLES, SIZE_VARIABLES

MODULE = "pretraining.runs.report.background"
NICENESS = 19  # of 20 priorities the last: beside a training, about 1.5 % of a core that both want
MOST_CPU_SECONDS = 600  # 500,000 records took 7
PR_SET_PDEATHSIG = 1
# What a launcher tells its processes: the report is none of them. MPI has many more words.
LAUNCHER_WORDS = (*RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_RANK_VARIABLES, *LOCAL_SIZE_VARIABLES, "MASTER_ADDR")
MPI_WORDS = ("OMPI_", "PMIX_", "PMI_", "PRTE_")


class ReportProcess:
    """Writes the report of a run folder, once at a time. Its starts must come from the main thread.

    That is since the kernel ends the process when the thread ends that started it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str | None:
        """Begin to write it, unless that is still going on; what went wrong with the last one, if anything.

        Raises:
            OSError: when no process can be started.
        """
        if self._process is not None and self._process.poll() is None:
            return None
        problem = self.wait()
        words = [sys.executable, "-m", MODULE, str(os.getpid()), str(self._run_dir)]
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in LAUNCHER_WORDS and not name.startswith(MPI_WORDS)
        }
        self._process = subprocess.Popen(
            words,
            cwd=PROJECT_DIR,
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the training, which has this one written to its end
        )
        return problem

    def wait(self, *, seconds: float | None = None) -> str | None:
        """Wait until it is written, so long at most; what went wrong, if anything."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            _, told = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it took longer than {seconds:g} s"
        lines = told.decode(errors="replace").strip().splitlines()
        return None if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[-1]


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def main(parent: int, run_dir: Path) -> None:
    """Write the report."""
    end_with(parent)
    os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):  # where the limit is lower already
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
    from pretraining.runs.report.report import (
        write_report,  # after the above, which holds for the threads that this starts
    )

    write_report(run_dir)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
