#!/usr/bin/env python3
"""Run a command, and run it again whenever it crashes.

    python3 -m tools.supervise --restarts 5 -- deepspeed --num_gpus=8 pretrain.py --recipe recipes/llama2_7b.yaml
    python3 -m tools.supervise --restarts 5 -- torchrun --nproc_per_node=8 pretrain.py

The command resumes by itself. It is not restarted after success, a user error (exit code 2), a missed --target_loss
(3) or a requested stop (75, 130). SIGINT, SIGTERM, SIGUSR1 and SIGHUP are passed on to all of its processes. The pause
before a restart doubles up to 10 minutes; after an attempt of 10 minutes it is the first one again.

On several machines, start it around `deepspeed --hostfile` on the first machine of the hostfile, or around `torchrun`
on each machine. Slurm restarts jobs by itself (`sbatch --requeue`), but only after the failure of a node.
"""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import flag
from pretraining.cli.program import exit_process, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import CRASH_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, UserError
from pretraining.system.formatting import format_duration
from pretraining.system.processes import STOP_SIGNALS, descendants
from pretraining.system.supervision import (
    FINAL_CODES,
    Restart,
    attempt_environment,
    boot_seconds,
    recorded_exit_code,
    registered_processes,
)

MAX_PAUSE_SECONDS = 600.0
LONG_ATTEMPT_SECONDS = 600.0  # after which a crash is not the same one again
CLEANUP_SECONDS = 60.0  # in which the processes of a crashed launcher end by themselves: they notice within seconds
POLL_SECONDS = 1.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
# An ssh of pdsh would wait for hours for a machine that does not answer.
PDSH_VARIABLE, SSH_ARGUMENTS = "PDSH_SSH_ARGS_APPEND", "-oServerAliveInterval=10 -oServerAliveCountMax=3"
SIGNAL_EXIT_CODE = 128  # plus the number of the signal, as shells report it

# Read at import: run_program later changes the threads and kernels of this process, not those of the command.
ENVIRONMENT = dict(os.environ)

logger = logging.getLogger("pretraining.supervise")


@dataclass(frozen=True)
class SuperviseArguments:
    """Flags of tools.supervise, before the `--` of the command."""

    restarts: int = flag(5, "restarts after crashes, in total")
    pause_seconds: float = flag(10.0, "seconds before the first restart")


def main(argv: Sequence[str]) -> None:
    """Read the flags and supervise the command after `--`."""
    words = list(argv)
    position = words.index("--") if "--" in words else len(words)
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Supervision", SuperviseArguments)], words[:position])
    command = words[position + 1 :]
    if not command:
        raise UserError("tools.supervise: the command is missing; write it after --, e.g. -- deepspeed pretrain.py")
    folder = Path(tempfile.mkdtemp(prefix="pretraining-supervisor-"))
    try:
        exit_code = Supervisor(command, folder).run(arguments.restarts, arguments.pause_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    exit_process(exit_code)


class Supervisor:
    """Runs `command` in attempts, one after another; `folder` is for `supervision`."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._environment: dict[str, str] = {}
        self._pid = os.getpid()
        self._stop_signal: int | None = None
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under nohup a terminal may be closed
        self._signals = {number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored}

    def run(self, num_restarts: int, first_pause: float) -> int:
        """Start the command until it ends well, or must not or cannot be restarted; the last exit code."""
        # Orphans of a launcher become children of this process, which therefore sees when all have ended.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, signal.SIGCHLD})  # for sigtimedwait
        started_at, pause = boot_seconds(), first_pause
        self._prepare_attempt(None)
        for number in range(1, num_restarts + 2):
            attempt_started_at = time.monotonic()
            exit_code = self._attempt()
            seconds = time.monotonic() - attempt_started_at
            reason = f"attempt {number} {_describe_exit(exit_code)} after {format_duration(seconds)}"
            if self._stop_signal is not None or exit_code in (0, USER_ERROR_EXIT_CODE, *FINAL_CODES):
                break
            if number > num_restarts:
                logger.error("%s; no restart left of %d", reason, num_restarts)
                break
            pause = first_pause if seconds >= LONG_ATTEMPT_SECONDS else pause
            logger.warning("%s; restart %d of %d in %.3g s", reason, number, num_restarts, pause)
            self._wait_for_signal(pause, {*self._signals})
            if self._stop_signal is not None:
                exit_code = STOPPED_EXIT_CODE
                break
            self._prepare_attempt(Restart(number, f"{reason}, at {time.strftime('%F %T')}", started_at))
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        return exit_code if exit_code >= 0 else SIGNAL_EXIT_CODE - exit_code

    def _attempt(self) -> int:
        """Run the command until it and all that it started have ended; its exit code, below 0 for a signal."""
        try:
            process = subprocess.Popen(
                self._command,
                env={**ENVIRONMENT, **self._environment},
                process_group=0,  # the Ctrl-C of a terminal is for this process, which passes it on
                preexec_fn=self._prepare_child,
            )
        except OSError as error:
            raise UserError(f"{self._command[0]}: cannot be started ({error.strerror}); check the command") from None
        exit_code, kills_at = None, float("inf")
        while True:
            ended, is_over = _reap()
            if process.pid in ended:
                exit_code = process.returncode = ended[process.pid]
                if self._stop_signal is None:
                    kills_at = time.monotonic() + CLEANUP_SECONDS
            if is_over and not registered_processes(self._folder):
                break
            if time.monotonic() > kills_at:
                self._pass_on(signal.SIGKILL)
            self._wait_for_signal(POLL_SECONDS, {*self._signals, signal.SIGCHLD})
        assert exit_code is not None
        recorded = recorded_exit_code(self._folder)
        is_killed = exit_code < 0 and self._stop_signal is None  # by the kernel, out of memory: nobody asked to stop
        return exit_code if recorded is None or (recorded == 0 and exit_code != 0) or is_killed else recorded

    def _prepare_attempt(self, restart: Restart | None) -> None:
        ssh_arguments = f"{ENVIRONMENT.get(PDSH_VARIABLE, '')} {SSH_ARGUMENTS}".strip()
        self._environment = {**attempt_environment(self._folder, restart), PDSH_VARIABLE: ssh_arguments}

    def _prepare_child(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # when this process is killed, the command stops
        if os.getppid() != self._pid:  # it was killed before that
            os._exit(CRASH_EXIT_CODE)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._signals, signal.SIGCHLD})

    def _wait_for_signal(self, seconds: float, numbers: set[signal.Signals]) -> None:
        received = signal.sigtimedwait(numbers, seconds)
        if received is not None and received.si_signo != signal.SIGCHLD:
            self._stop_signal = received.si_signo
            self._pass_on(received.si_signo)

    def _pass_on(self, number: int) -> None:
        """Send a signal to all processes of the command, the ranks before their launcher: some end it without them.

        Ranks that sshd has started have the others on all machines stop with them; the launcher would cut them off.
        """
        own = descendants(os.getpid())
        remote = [process for process in registered_processes(self._folder) if process not in own]
        for process in remote if remote and number != signal.SIGKILL else [*remote, *reversed(own)]:
            if process.is_alive():
                with suppress(OSError):  # it has ended, or is another user's, as of sudo
                    os.kill(process.pid, number)


def _reap() -> tuple[dict[int, int], bool]:
    """Exit codes of the children that have ended since the last call, by pid, and whether no child is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, True
        if pid == 0:
            return ended, False
        ended[pid] = os.waitstatus_to_exitcode(status)


def _describe_exit(exit_code: int) -> str:
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"


if __name__ == "__main__":
    run_program(main)
