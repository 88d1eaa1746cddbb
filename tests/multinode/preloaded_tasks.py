"""What srun starts on two hosts, one task on each, as forks of a process that has everything imported."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done, wait_until
from tests.multinode.hosts import NAMES, TwoHosts
from tests.multinode.hosts import SEARCH_PATH as HOST_PATH
from tests.programs.launching import SEARCH_PATH, leave_listening

PRELOADED = "tests/programs/drivers/preloaded.py"


def listen_on(hosts: TwoHosts, folder: Path) -> dict[str, str]:
    """Leave a process that has everything imported on each host; they end with the hosts."""
    environment, _ = (leave_listening(folder, name, hosts.init(name)) for name in NAMES)
    wait_until(lambda: all(hosts.processes(name) for name in NAMES))
    return environment


def slurm_task(rank: int) -> dict[str, str]:
    """What `srun --nodes=2 --ntasks-per-node=1` sets in a task."""
    job = {"JOB_ID": "4711", "NTASKS": "2", "LAUNCH_NODE_IPADDR": "10.99.0.1", "STEP_TASKS_PER_NODE": "1(x2)"}
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "node-a,node-b"}
    task = {"PROCID": str(rank), "LOCALID": "0", "NODEID": str(rank)}
    return {f"SLURM_{key}": value for key, value in {**job, **step, **task}.items()}


class PreloadedTasks:
    """Takes a program at a time."""

    def __init__(self, hosts: TwoHosts, folder: Path) -> None:
        self._hosts, self._folder, self._num_started = hosts, folder, 0
        self._connections: list[socket.socket] = []
        listen_on(hosts, folder)

    def run(self, words: Sequence[object], flags_of_b: Sequence[object] = ()) -> list[Done]:
        """Start a program on both hosts and wait for its ends."""
        self.start(words, flags_of_b)
        return self.ends()

    def start(self, words: Sequence[object], flags_of_b: Sequence[object] = ()) -> None:
        """Start a program on both hosts, with more flags on the second one."""
        self._num_started += 1
        inherited = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
        env = {**inherited, "PATH": HOST_PATH, "PYTHONPATH": SEARCH_PATH, "DS_ACCELERATOR": "cpu"}
        for rank, name in enumerate(NAMES):
            argv = [str(word) for word in [*words, *flags_of_b[: rank * len(flags_of_b)]]]
            job = {"argv": argv, "env": {**env, **slurm_task(rank)}, "cwd": str(PROJECT_DIR)}
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(HANG_SECONDS)
            connection.connect(str(self._folder / name))
            with (
                Path(os.devnull).open() as stdin,
                self._path(rank, "stdout").open("w") as stdout,
                self._path(rank, "stderr").open("w") as stderr,
            ):
                files = [file.fileno() for file in (stdin, stdout, stderr)]
                socket.send_fds(connection, [json.dumps(job).encode()], files)
                connection.recv(32)
            self._connections.append(connection)

    def ends(self) -> list[Done]:
        """How the program has ended on each host; nothing of it may be left."""
        codes = [int(connection.recv(32)) for connection in self._connections]
        for connection in self._connections:
            connection.close()
        self._connections = []
        wait_until(lambda: len(self._left()) <= len(NAMES), lambda: "\n".join(self._left()))
        texts = [[self._path(rank, name).read_text() for name in ("stdout", "stderr")] for rank in range(len(codes))]
        return [Done(code, *text) for code, text in zip(codes, texts, strict=True)]

    def _left(self) -> list[str]:
        return [line for name in NAMES for line in self._hosts.commands(name) if PRELOADED in line]

    def _path(self, rank: int, name: str) -> Path:
        return self._folder / f"{self._num_started}-{rank}.{name}"
