"""Write the report of a running training in a background process of the lowest priority.

    python3 -m pretraining.runs.report.background PARENT RUN_FOLDER

It needs no torch, so it starts fast, and the kernel kills it when its parent ends.
"""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

from pretraining import PROJECT_DIR
from pretraining.system.launchers import LOCAL_RANK_VARIABLES, LOCAL_SIZE_VARIABLES, RANK_VARIABLES, SIZE_VARIABLES
from pretraining.system.processes import end_with_parent

MODULE = "pretraining.runs.report.background"
NICENESS = 19  # the lowest priority: about 1.5 % of a core that a training wants too
MAX_CPU_SECONDS = 600  # 500,000 records took 7
# Variables by which launchers number their processes; the report is not one of them. MPI has many more.
LAUNCHER_VARIABLES = (*RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_RANK_VARIABLES, *LOCAL_SIZE_VARIABLES, "MASTER_ADDR")
MPI_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_")


class ReportProcess:
    """Writes the report of a run folder, one process at a time.

    Call `start` from the main thread: the kernel kills the process when the thread ends that started it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str | None:
        """Start to write the report, unless it is being written; return the error of the previous one, if any.

        Raises:
            OSError: when no process can be started.
        """
        if self._process is not None and self._process.poll() is None:
            return None
        problem = self.wait()
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in LAUNCHER_VARIABLES and not name.startswith(MPI_PREFIXES)
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(os.getpid()), str(self._run_dir)],
            cwd=PROJECT_DIR,
            env={**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the training, which waits until the report is written
        )
        return problem

    def wait(self, *, seconds: float | None = None) -> str | None:
        """Wait until the report is written, for some seconds at most; return the error, if any."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it took longer than {seconds:g} s"
        lines = errors.decode(errors="replace").strip().splitlines()
        return None if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[-1]


def main(parent: int, run_dir: Path) -> None:
    """Write the report."""
    end_with_parent(parent)
    os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):  # where the limit is lower already
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    from pretraining.runs.report.report import write_report  # here, so that its threads have the priority too

    write_report(run_dir)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
