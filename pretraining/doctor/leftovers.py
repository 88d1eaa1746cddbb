"""What earlier runs left behind: a port in use, processes without a launcher, locks of killed builds."""

import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.system.files import cache_dir

LAUNCHER_PORT = 29500  # of deepspeed and torchrun
PROGRAM = "pretrain.py"


def launcher_port(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the port is free at which the processes of a run meet."""
    port = int(os.environ.get("MASTER_PORT", LAUNCHER_PORT))
    is_taken = not is_free(port)
    other = next((number for number in range(port + 1, port + 100) if is_taken and is_free(number)), 0)
    figure = f"{port} is taken by {_holder(port)}" if is_taken else f"{port} is free"
    yield warning_if(is_taken, "port", figure, f"deepspeed --master_port={other} pretrain.py", port=port)


def is_free(port: int) -> bool:
    """Whether a launcher could listen on a port; closed connections that linger there do not matter."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen()
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    import psutil

    try:
        listening = [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        return "another process"
    pids = {found.pid for found in listening if found.laddr.port == port and found.pid}
    return ", ".join(describe_process(pid) for pid in sorted(pids)) or "another process"


def describe_process(pid: int) -> str:
    """A process as `PID (program, user)`; only the number where it belongs to another container."""
    import psutil

    try:
        process = psutil.Process(pid)
        programs = [Path(word).name for word in process.cmdline() if word.endswith(".py")]
        return f"{pid} ({programs[0] if programs else process.name()}, {process.username()})"
    except psutil.Error:
        return f"{pid} (not visible from here)"


def stale_processes(_: Sequence[Path]) -> Iterator[Finding]:
    """Processes of pretrain.py whose launcher is gone: they hold memory and GPUs."""
    import psutil

    found = [
        process.pid
        for process in psutil.process_iter(["ppid", "cmdline"])
        if process.info["ppid"] == 1 and any(Path(word).name == PROGRAM for word in process.info["cmdline"] or [])
    ]
    pids = " ".join(map(str, found))
    named = f"{len(found)} of {PROGRAM} without a launcher: {', '.join(map(describe_process, found))}"
    fix = f"ps -o pid,lstart,args -p {pids}  # not wanted? kill {pids}"
    yield warning_if(bool(found), "stale processes", named if found else f"none of {PROGRAM}", fix, pids=found)


def extension_locks(_: Sequence[Path]) -> Iterator[Finding]:
    """Locks of torch's C++ extensions: one whose build was killed makes every process wait forever, silently."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(chosen) if chosen else cache_dir() / "torch_extensions"
    locks = sorted(folder.rglob("lock")) if folder.is_dir() else []
    if not locks:
        yield ok("extension locks", f"none in {folder}")
        return
    import psutil

    is_building = any(process.info["name"] == "ninja" for process in psutil.process_iter(["name"]))
    for path in locks:
        figure = f"{path}, {(time.time() - path.stat().st_mtime) / 60:.0f} min old; "
        if is_building:
            yield warning("extension locks", f"{figure}a build is running", "pgrep -a ninja", path=str(path))
        else:
            fix = f"rm {shlex.quote(str(path))}"
            yield failure("extension locks", f"{figure}no build holds it", fix, path=str(path))
