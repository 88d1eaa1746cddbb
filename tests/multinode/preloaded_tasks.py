"""What srun starts on two hosts, one task on each, as forks of processes there that have everything imported."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT_DIR, Done
from tests.multinode.hosts import NAMES, TwoHosts
from tests.programs.launching import SEARCH_PATH

PRELOADED = PROJECT_DIR / "tests/programs/drivers/preloaded.py"


def slurm_task(rank: int) -> dict[str, str]:
    """What `srun --nodes=2 --ntasks-per-node=1` sets in a task."""
    job = {"JOB_ID": "4711", "NTASKS": "2", "LAUNCH_NODE_IPADDR": "10.99.0.1", "STEP_TASKS_PER_NODE": "1(x2)"}
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "node-a,node-b"}
    task = {"PROCID": str(rank), "LOCALID": "0", "NODEID": str(rank)}
    return {f"SLURM_{key}": value for key, value in {**job, **step, **task}.items()}


class PreloadedTasks:
    """Takes a program at a time; the processes end with the hosts."""

    def __init__(self, hosts: TwoHosts, folder: Path) -> None:
        self._hosts, self._folder, self._num_started = hosts, folder, 0
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": SEARCH_PATH}
        pipes = [folder / f"{name}.jobs" for name in NAMES]
        for pipe in pipes:
            os.mkfifo(pipe)
        words = ["sh", "-c", 'exec "$0" "$1" < "$2"', sys.executable, PRELOADED]
        self._servers = [hosts.run(name, [*words, pipe], env=env) for name, pipe in zip(NAMES, pipes, strict=True)]
        self._jobs = [pipe.open("w") for pipe in pipes]

    def run(self, words: Sequence[object], flags_of_b: Sequence[object] = ()) -> list[Done]:
        """Start a program on both hosts and wait for its ends."""
        self.start(words, flags_of_b)
        return self.ends()

    def start(self, words: Sequence[object], flags_of_b: Sequence[object] = ()) -> None:
        """Start a program on both hosts, with more flags on the second one."""
        self._num_started += 1
        for rank, jobs in enumerate(self._jobs):
            argv = [str(word) for word in [*words, *flags_of_b[: rank * len(flags_of_b)]]]
            job: dict[str, Any] = {"argv": argv, "env": slurm_task(rank), "num_ranks": 0, "cwd": str(PROJECT_DIR)}
            job |= {name: str(self._path(rank, name)) for name in ("stdin", "stdout", "stderr")}
            self._path(rank, "stdin").touch()
            jobs.write(json.dumps(job) + "\n")
            jobs.flush()

    def ends(self) -> list[Done]:
        """How the program has ended on each host; nothing of it may be left."""
        for server in self._servers:
            server.wait_until(lambda server=server: len(self._codes(server.output())) == self._num_started)
        left = [line for name in NAMES for line in self._hosts.commands(name) if PRELOADED.name in line]
        assert len(left) == len(NAMES), left
        codes = [self._codes(server.output())[-1] for server in self._servers]
        texts = [[self._path(rank, name).read_text() for name in ("stdout", "stderr")] for rank in range(len(codes))]
        return [Done(code, *text) for code, text in zip(codes, texts, strict=True)]

    def _path(self, rank: int, name: str) -> Path:
        return self._folder / f"{self._num_started}-{rank}.{name}"

    def _codes(self, output: str) -> list[int]:
        return [int(line) for line in output.splitlines() if line.removeprefix("-").isdigit()]
