"""Leave no orphans: each process watches its launcher and the other processes of its machine.

Launchers leave orphans: SIGTERM or a kill of the `deepspeed` command ends only that command; a kill of its child, which
starts the ranks, leaves these running, and the command reports success (0.19.8 checks for exit codes above 0, and that
of a signal is negative). A rank whose peer was killed can wait in NCCL forever.
"""

import contextlib
import math
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from pretraining.cli.program import hard_exit
from pretraining.errors import CRASH_EXIT_CODE, INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE
from pretraining.system.launchers import has_launcher, launcher_identity, local_rank, process_rank
from pretraining.system.processes import STOP_SIGNALS, ProcessHandle, command_words, stat_words
from pretraining.training.stopping.remote_launch import is_below_sshd, pdsh_runner, stderr_is_closed
from pretraining.training.stopping.request import CRASH_SIGNAL, END_CODES, Phase, StopRequest

POLL_SECONDS = 0.02  # the deepspeed command takes about 0.1 s to end, and must not report success before
PEER_POLL_SECONDS = 1.0
SIGNAL_GRACE_SECONDS = 1.0  # a signal to all processes of a job kills some launchers and asks the ranks to stop
PEER_GRACE_SECONDS = 3.0  # a peer that ends with an error logs it first
DOUBLE_INTERRUPT_SECONDS = 1.0  # some launchers forward the Ctrl-C that their processes also received
SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "csh", "tcsh"}


class OrphanGuard(threading.Thread):
    """Ends this process when it must not continue, whatever its main thread does; records requests to stop."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(name="orphan guard", daemon=True)
        self._request = request
        self._launcher = _launcher()
        self._runner = None if self._launcher is None else _deepspeed_runner(self._launcher.pid)
        self._is_remote = self._launcher is not None and is_below_sshd(self._launcher.pid)
        self._peers: dict[int, ProcessHandle] = {}
        self._ends_at: float | None = None
        self._first_interrupt: float | None = None
        self._peers_checked_at = 0.0

    def watch(self, peers: Mapping[int, ProcessHandle]) -> None:
        """End when one of these ends: the other processes of this run on this machine, by rank."""
        self._peers = dict(peers)

    def end_peers(self, exit_code: int = USER_ERROR_EXIT_CODE) -> None:
        """End the other processes of this machine silently; this one has logged the error, and ends next."""
        number = next((signal for signal, code in END_CODES.items() if code == exit_code), CRASH_SIGNAL)
        for peer in self._peers.values():
            if peer.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(peer.pid, number)

    def run(self) -> None:
        """Poll signals, the launcher and the peers until the process ends."""
        while True:
            if select.select([self._request.wakeup], [], [], POLL_SECONDS)[0]:
                self._read_signals(os.read(self._request.wakeup, 64))
            now = time.monotonic()
            self._check_launcher(now)
            if now - self._peers_checked_at > PEER_POLL_SECONDS:
                self._peers_checked_at = now
                self._check_peers()
            if self._request.reason and self._request.phase in (Phase.BEFORE, Phase.AFTER):
                purpose = "evaluate and export" if self._request.phase is Phase.AFTER else "resume"
                _exit_rank(f"stopped ({self._request.reason}); rerun to {purpose}", STOPPED_EXIT_CODE)

    def _read_signals(self, signals: bytes) -> None:
        for number, exit_code in END_CODES.items():
            if number in signals:
                end_workers()
                hard_exit("", exit_code)
        if self._request.phase is Phase.BEFORE:  # Python has raised KeyboardInterrupt
            return
        for number in set(STOP_SIGNALS).intersection(signals):  # torch also handles the end of its workers
            self._request.request(signal.Signals(number).name)
            if number == signal.SIGINT:
                now = time.monotonic()
                self._first_interrupt = self._first_interrupt or now
                if now - self._first_interrupt > DOUBLE_INTERRUPT_SECONDS:
                    _exit_rank("interrupted twice: exiting without saving", INTERRUPTED_EXIT_CODE)

    def _check_launcher(self, now: float) -> None:
        """Exit if the launcher died: it never ends before its processes by itself."""
        if self._launcher is not None and not self._launcher.is_alive():
            if self._runner is not None and self._runner.is_alive() and local_rank() == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._runner.pid, signal.SIGTERM)
            self._launcher = self._runner = None
            self._ends_at = now + SIGNAL_GRACE_SECONDS
        if self._ends_at is not None and now > self._ends_at:
            self._ends_at = None
            if not self._request.reason:
                _exit_rank("launcher died, stopping; rerun to resume", CRASH_EXIT_CODE)

    def _check_peers(self) -> None:
        """Request a stop if the `deepspeed` command is gone; exit if another process of this run died."""
        if self._is_remote and stderr_is_closed():
            self._is_remote = False
            self._request.request("the launcher is gone")
        if self._runner is not None and not self._runner.is_alive():
            self._runner = None
            self._request.request("the launcher is gone")
        dead = [rank for rank, peer in self._peers.items() if not peer.is_alive()]
        if dead and self._request.phase is not Phase.LEAVING:
            time.sleep(PEER_GRACE_SECONDS)
            if self._request.phase is not Phase.LEAVING:
                alive = self._peers.keys() - set(dead)
                message = f"process {dead[0]} of this run died, stopping; rerun to resume"
                hard_exit(message if process_rank() < min(alive, default=math.inf) else "", CRASH_EXIT_CODE)


def end_workers() -> None:
    """Kill the DataLoader workers first: one that is sending a batch would print a traceback."""
    for worker in multiprocessing.active_children():
        worker.kill()


def _exit_rank(message: str, exit_code: int) -> None:
    """Exit at once; only the first process of this machine logs the message."""
    hard_exit(message if local_rank() == 0 else "", exit_code)


def _launcher() -> ProcessHandle | None:
    """The launcher of this process or of its supervisor; None without one.

    A shell is not a launcher: it may end before what it started.
    """
    if not has_launcher():
        return None
    try:
        pid, started = launcher_identity().split("-")
        is_shell = Path(f"/proc/{pid}/comm").read_text().strip() in SHELLS
    except OSError:  # where /proc hides other users' processes
        return None
    return None if is_shell else ProcessHandle(int(pid), started)


def _deepspeed_runner(launcher: int) -> ProcessHandle | None:
    """The `deepspeed` command on this machine that started the launcher; None for other launchers."""
    if "deepspeed.launcher.launch" not in command_words(launcher):
        return None
    if is_below_sshd(launcher) and (runner := pdsh_runner(launcher)) is not None:
        return runner
    parent = int(stat_words(launcher)[1])  # below sshd too, where the command was typed after `ssh HOST`
    names = [Path(word).name for word in command_words(parent)]
    return ProcessHandle.of(parent) if {"deepspeed", "ds", "deepspeed.launcher.runner"} & set(names) else None
