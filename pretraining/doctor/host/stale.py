"""What earlier runs left: a port that is taken, processes that lost their launcher."""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from pretraining.doctor.finding import Finding, ok, warning

LAUNCHER_PORT = 29500  # deepspeed's and torchrun's
PROGRAM = "pretrain.py"


def launcher_port(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the port is free at which the processes of a run meet."""
    port = int(os.environ.get("MASTER_PORT", LAUNCHER_PORT))
    if is_free(port):
        yield ok("port", f"{port} is free", port=port)
        return
    other = next((number for number in range(port + 1, port + 100) if is_free(number)), 0)
    figure = f"{port} is taken by {_holder(port)}"
    yield warning("port", figure, f"deepspeed --master_port={other} pretrain.py", port=port)


def is_free(port: int) -> bool:
    """Whether a launcher could listen here; what is left of a closed connection is no hindrance."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen()
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        listening = [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        return "another process"
    pids = {found.pid for found in listening if found.laddr.port == port and found.pid}
    return ", ".join(described(pid) for pid in sorted(pids)) or "another process"


def described(pid: int) -> str:
    """A process as `PID (program, user)`; another container's is a number alone."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        programs = [Path(word).name for word in words if word.endswith(".py")]
        return f"{pid} ({programs[0] if programs else process.name()}, {process.username()})"
    except psutil.Error:
        return f"{pid} (not visible from here)"


def orphans(_: Sequence[Path]) -> Iterator[Finding]:
    """Processes of pretrain.py that no launcher looks after: they hold memory and GPUs."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["ppid"] == 1 and any(Path(word).name == PROGRAM for word in words):
            found.append(process.info["pid"])
    if found:
        words = " ".join(map(str, found))
        figure = f"{len(found)} of {PROGRAM} without a launcher: {', '.join(map(described, found))}"
        yield warning(
            "left processes", figure, f"ps -o pid,lstart,args -p {words}  # not wanted? kill {words}", pids=found
        )
    else:
        yield ok("left processes", f"none of {PROGRAM}")
