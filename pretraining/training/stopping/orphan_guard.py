"""No process of a run is left behind: each one watches its launcher and the other processes of its machine.

What launchers do by themselves leaves orphans: SIGTERM or a kill of the `deepspeed` command ends that command alone; a
kill of its child, which starts the ranks, leaves these running and has the command report success (0.19.8, it looks
for exit codes above 0, and a signal's is below). And a rank whose neighbour was killed can wait in NCCL for ever.
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
from pretraining.system.processes import STOP_SIGNALS, ProcessHandle, stat_words
from pretraining.training.stopping.request import END_SIGNAL, Phase, StopRequest

POLL_SECONDS = 0.02  # the deepspeed command takes about 0.1 s to end, and must not get to report success
LOOK_AROUND_SECONDS = 1.0
ASKED_WITHIN_SECONDS = 1.0  # a signal to all processes of a job kills some launchers, and asks the ranks to stop
PEER_GRACE_SECONDS = 3.0  # what another process has to say about its end comes first
DOUBLE_INTERRUPT_SECONDS = 1.0  # some launchers pass on the Ctrl-C that their processes had already
SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "csh", "tcsh"}


class OrphanGuard(threading.Thread):
    """Ends this process when it must not go on, whatever its main thread does; passes on who asks it to stop."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(name="lifeline", daemon=True)
        self._request = request
        self._launcher = _launcher()
        self._runner = None if self._launcher is None else _deepspeed_runner(self._launcher.pid)
        self._others: dict[int, ProcessHandle] = {}
        self._ends_at: float | None = None
        self._first_interrupt: float | None = None
        self._looked_around_at = 0.0

    def watch(self, others: Mapping[int, ProcessHandle]) -> None:
        """End when one of these does: the other processes of this run on this machine, by rank."""
        self._others = dict(others)

    def end_others(self) -> None:
        """Have the other processes of this machine end without a word; this one has said why, and leaves next."""
        for other in self._others.values():
            if other.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other.pid, END_SIGNAL)

    def run(self) -> None:
        """Look, again and again."""
        while True:
            if select.select([self._request.wakeup], [], [], POLL_SECONDS)[0]:
                self._hear(os.read(self._request.wakeup, 64))
            now = time.monotonic()
            self._look_up(now)
            if now - self._looked_around_at > LOOK_AROUND_SECONDS:
                self._looked_around_at = now
                self._look_around()
            if self._request.reason and self._request.phase in (Phase.BEFORE, Phase.AFTER):
                self._leave_without_saving()

    def _hear(self, signals: bytes) -> None:
        if END_SIGNAL in signals:
            end_workers()
            hard_exit("", USER_ERROR_EXIT_CODE)
        for number in set(STOP_SIGNALS).intersection(signals):  # torch has a handler too, for the end of its workers
            self._request.ask(signal.Signals(number).name)
            if number == signal.SIGINT:
                now = time.monotonic()
                self._first_interrupt = self._first_interrupt or now
                if now - self._first_interrupt > DOUBLE_INTERRUPT_SECONDS:
                    _leave("interrupted twice: the run ends without saving", INTERRUPTED_EXIT_CODE)

    def _look_up(self, now: float) -> None:
        """Is the launcher there? It never ends before its processes by itself."""
        if self._launcher is not None and not self._launcher.is_alive():
            if self._runner is not None and self._runner.is_alive() and local_rank() == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._runner.pid, signal.SIGTERM)
            self._launcher = self._runner = None
            self._ends_at = now + ASKED_WITHIN_SECONDS
        if self._ends_at is not None and now > self._ends_at:
            self._ends_at = None
            if not self._request.reason:
                _leave("the launcher died, so this run ends; the same command goes on", CRASH_EXIT_CODE)

    def _look_around(self) -> None:
        """Is the `deepspeed` command there, are the other processes?"""
        if self._runner is not None and not self._runner.is_alive():
            self._runner = None
            self._request.ask("the launcher is gone")
        dead = [rank for rank, other in self._others.items() if not other.is_alive()]
        if dead and self._request.phase is not Phase.LEAVING:
            time.sleep(PEER_GRACE_SECONDS)
            if self._request.phase is not Phase.LEAVING:
                alive = self._others.keys() - set(dead)
                said = f"process {dead[0]} of this run died, so it ends; the same command goes on"
                hard_exit(said if process_rank() < min(alive, default=math.inf) else "", CRASH_EXIT_CODE)

    def _leave_without_saving(self) -> None:
        said = "evaluates and exports" if self._request.phase is Phase.AFTER else "goes on"
        _leave(f"stopped ({self._request.reason}); the same command {said}", STOPPED_EXIT_CODE)


def end_workers() -> None:
    """End the workers of DataLoaders first: one that is sending a batch would show a traceback."""
    for worker in multiprocessing.active_children():
        worker.kill()


def _leave(message: str, exit_code: int) -> None:
    hard_exit(message if local_rank() == 0 else "", exit_code)


def _launcher() -> ProcessHandle | None:
    """What started this process, or its supervisor, if that is a launcher.

    Nothing is for python3 alone, and a shell is none, which may be left.
    """
    if not has_launcher():
        return None
    try:
        pid, started = launcher_identity().split("-")
        is_shell = Path(f"/proc/{pid}/comm").read_text().strip() in SHELLS
    except OSError:  # where a process does not see the others
        return None
    return None if is_shell else ProcessHandle(int(pid), started)


def _deepspeed_runner(launcher: int) -> ProcessHandle | None:
    """The `deepspeed` command on this machine that started the launcher; None for other launchers."""
    if "deepspeed.launcher.launch" not in _command_line(launcher):
        return None
    runner = int(stat_words(launcher)[1])
    names = [Path(word).name for word in _command_line(runner)]
    return ProcessHandle.of(runner) if {"deepspeed", "ds", "deepspeed.launcher.runner"} & set(names) else None


def _command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
