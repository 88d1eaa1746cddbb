"""Make slices in several processes of this machine, as Python's lock limits one to about 500 MB/s of text.

That is by arithmetic: what needs the lock takes 0.6 s of CPU time for 296 MB (docs/benchmarks/preprocess.md, Stages).
They are used without mpirun, where there are several slices and each process has enough of them to win back its start.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pretraining.cli.logs import setup_logging
from pretraining.data.build.work import MIN_THREADS, Meter
from pretraining.errors import UserError
from pretraining.system.processes import end_with_parent

MIN_PROCESS_BYTES = 64 << 20  # of the input: a process takes 1 s to start, in which one core encodes about as much
Task = Callable[[int, Meter], None]


def num_worker_processes(num_slices: int, num_bytes: int, num_workers: int) -> int:
    """How many processes make `num_slices` slices of `num_bytes` together; 1 is this process alone.

    >>> num_worker_processes(64, 10**12, 34), num_worker_processes(1, 10**12, 34), num_worker_processes(64, 10**6, 34)
    (17, 1, 1)
    """
    return max(1, min(num_slices, num_workers // MIN_THREADS, num_bytes // MIN_PROCESS_BYTES))


def make_each(task: Task, numbers: Sequence[int], meter: Meter, num_processes: int) -> None:
    """Call `task` for each number, in `num_processes` processes if there are several; it is then pickled.

    Raises:
        UserError: also when a process was killed.
    """
    if num_processes == 1:
        for number in numbers:
            task(number, meter)
        return
    waiting = deque(numbers)
    with _workers(task, num_processes) as workers:
        busy = {worker: connection for worker, connection in workers.items() if _give_next(connection, waiting)}
        while busy:
            for connection in wait(list(busy.values())):
                worker = next(worker for worker, own in busy.items() if own is connection)
                if _is_done(worker, connection, meter) and not _give_next(connection, waiting):
                    del busy[worker]


def _give_next(connection: Any, waiting: deque[int]) -> bool:
    """Give a process its next number, if there is one; a process that was killed is noticed at the next answer."""
    if waiting:
        with contextlib.suppress(BrokenPipeError):
            connection.send(waiting.popleft())
        return True
    return False


def _is_done(worker: SpawnProcess, connection: Any, meter: Meter) -> bool:
    """Take one message of a process: counts, the end of its slice (None), or an error."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionError):
        worker.join()
        raise UserError(
            f"a process that writes slices ended with exit code {worker.exitcode}, perhaps for lack of memory; run the "
            "same command again with fewer --num_workers"
        ) from None
    if isinstance(message, BaseException):
        raise message
    if message is not None:
        name, counts = message
        getattr(meter, name)(*counts)
    return message is None


@contextlib.contextmanager
def _workers(task: Task, num_processes: int) -> Iterator[dict[SpawnProcess, Connection]]:
    """Processes that wait for numbers, ended with this one however it ends; pipes to them."""
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    workers: dict[SpawnProcess, Connection] = {}
    try:
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
            worker.start()
            theirs.close()
            workers[worker] = ours
        for connection in workers.values():
            connection.send(task)
        yield workers
    finally:
        for worker in workers:
            worker.kill()  # idle, or its unfinished section is made again
        for worker in workers:
            worker.join()


class _Messages:
    """A meter whose counts go to the first process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def skip(self, num_bytes: int, num_documents: int) -> None:
        """Send what an earlier run has done."""
        self._connection.send(("skip", (num_bytes, num_documents)))

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None:
        """Send what was just done."""
        self._connection.send(("add", (num_bytes, num_documents, num_tokens)))


def _work(connection: Connection, parent: int) -> None:
    """Make the slices whose numbers come through `connection`."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the first process, which ends this one
    setup_logging()
    logging.disable(logging.WARNING)  # the first process has opened the same tokenizer, and warned
    task: Task = connection.recv()
    logging.disable(logging.NOTSET)
    try:
        while True:
            task(connection.recv(), _Messages(connection))
            connection.send(None)
    except Exception as error:
        error.add_note(traceback.format_exc())  # a traceback is not pickled
        connection.send(error)
