"""Starts scripts in forks of a process that has everything imported, which takes a start from ten seconds to one.

Reads jobs as JSON lines, answers each with the exit code of its first rank that failed, or 0. Ranks have the variables
that torchrun sets; a job of no rank is a program of one process without a launcher. A job that listens leaves a process
to which hand_over.py connects.
"""

import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import weakref
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pretraining.cli.program import importing_libraries
from pretraining.system.torch_environment import use_reproducible_kernels

# By the functions of libraries that a run calls.
IMPORTED_LATER = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "encodings.idna",
    "scipy.io",
    "torch.utils.serialization",
)
MAX_JOB_BYTES = 1 << 18
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import_everything()
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(f"{leave_listening(**job) if 'listen' in job else run_job(job)}\n")
        answers.flush()


def import_everything() -> None:
    """Import what a run of two ranks imports, a third of the time of each rank otherwise.

    deepspeed imports its Muon optimizer with any other, and asks the C compiler for what its operators need.
    """
    use_reproducible_kernels()  # before torch is imported, as a program does
    with importing_libraries():
        from transformers import LlamaForCausalLM, Trainer  # noqa: F401
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        import pretraining.data.synthetic
        import pretraining.generation.generate
        import pretraining.training.run  # noqa: F401
        from pretraining.runs.model_card import template
        from pretraining.training.distributed.deepspeed_internals import disable_shm_op, import_muon_without_compiler
        from pretraining.training.model.fields import load_presets

        disable_shm_op()
        import_muon_without_compiler()
        get_checkpoint_conversion_mapping("llama")  # compiles the patterns of all models
        template()
        load_presets()
        for name in IMPORTED_LATER:
            import_module(name)
    keep_operators()


def keep_operators() -> None:
    """Have no rank take back torch's operators as it exits, one by one for 30 ms."""
    import torch.library

    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if finalizer.peek()[1] is torch.library._del_library:
            finalizer.atexit = False


def run_job(job: dict[str, Any]) -> int:
    """Fork the ranks, wait for them; when one fails, end the others."""
    running = {fork(job, rank_variables(job, rank)) for rank in range(job["num_ranks"])} or {fork(job, {})}
    failed = 0
    while running:
        pid, status = os.wait()
        if pid not in running:  # that listened
            continue
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in running:
                os.kill(other, signal.SIGTERM)
    return failed


def rank_variables(job: dict[str, Any], rank: int) -> dict[str, str]:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["num_ranks"], "LOCAL_WORLD_SIZE": job["num_ranks"]}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
    return {name: str(value) for name, value in variables.items()}


def fork(job: dict[str, Any], variables: dict[str, str]) -> int:
    pid = os.fork()
    if pid == 0:
        outputs = [os.open(job[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT) for name in ("stdout", "stderr")]
        os.environ.update(job["env"] | variables)
        become(job, [os.open(job["stdin"], os.O_RDONLY), *outputs])
    return pid


def become(job: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the program, with these files as stdin, stdout and stderr."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(job["cwd"])
    code = 1
    try:
        run_script(job["argv"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def read_hub_variables() -> None:
    """Take what the libraries of the Hub have read when they were imported from the variables of this process."""
    import datasets.config
    from huggingface_hub import constants, hf_api, hf_file_system

    for module in (constants, datasets.config):
        importlib.reload(module)  # others read its values where they need them
    for client in (hf_api.api, hf_file_system.hffs):
        client.endpoint = constants.ENDPOINT


def run_script(words: list[str]) -> None:
    """What `python WORDS` runs: a file, or a module after -m; with the variables that were read at its start."""
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if "HF_ENDPOINT" in os.environ:
        read_hub_variables()
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def leave_listening(listen: str, init: int | None) -> int:
    """Fork a process that starts what is handed over to it, on the host of the process `init` if that is given."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(listen)
        listener.listen()
        if os.fork() == 0:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if init is not None:
                enter(init)
            serve(listener)
    return 0


def enter(init: int) -> None:
    """Go where a process is: its network, files, names and processes."""
    spaces = [os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY) for name in ("net", "uts", "ipc", "pid", "mnt")]
    for space in spaces:
        assert LIBC.setns(space, 0) == 0
        os.close(space)
    if pid := os.fork():  # only children are in the other space of process numbers
        os.waitpid(pid, 0)
        os._exit(0)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(listener: socket.socket) -> NoReturn:
    """Start each program that is handed over, several at once."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                start(connection)


def start(connection: socket.socket) -> NoReturn:
    """Start a program, tell its number and then its exit code; it ends with who has handed it over."""
    message, files, *_ = socket.recv_fds(connection, MAX_JOB_BYTES, 3)
    job = json.loads(message)
    if not (pid := os.fork()):
        connection.close()
        os.environ.clear()
        os.environ.update(job["env"])
        tempfile.tempdir = None
        become(job, files)
    connection.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    readable, *_ = select.select([ended, connection], [], [])
    if ended not in readable:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended in readable:
        connection.send(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
