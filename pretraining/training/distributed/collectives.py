"""Small collectives over the process group: gather, broadcast, and work on the main process alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from pretraining.errors import UserError

Result = TypeVar("Result")

FAILURE_WINDOW_SECONDS = 60.0
POLL_SECONDS = 60.0  # below any --ddp_timeout


def is_main_process() -> bool:
    """Whether this is rank 0."""
    return distributed.get_rank() == 0


def all_gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes by rank, on all of them."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return the value of the main process, on all of them."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def run_on_main(work: Callable[[], Result]) -> Result:
    """Run `work` on the main process and return its result on all of them.

    Raises:
        UserError: on all processes, when `work` raises it or cannot read or write a file.
    """
    result, problems = None, None
    if is_main_process():
        try:
            result = work()
        except UserError as error:
            problems = error.problems
        except OSError as error:
            problems = (f"{error.filename}: {error.strerror}; fix that, or choose another folder",)
    result, problems = broadcast_object((result, problems))
    if problems is not None:
        raise UserError(*problems)
    return result


def run_on_main_polling(work: Callable[[], Result]) -> Result:
    """Like `run_on_main`, for work that may take longer than --ddp_timeout; errors stay on the main process."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work) if is_main_process() else None
    while broadcast_object(future is not None and bool(wait([future], timeout=POLL_SECONDS).not_done)):
        pass
    return broadcast_object(None if future is None else future.result())


def all_ranks_failed(what: str) -> bool:
    """Whether every process failed at `what`: each that does calls this, within a minute.

    Exchanged by the store of the process group: a collective may be waiting for a process that failed.
    """
    store = distributed.distributed_c10d._get_default_store()
    keys = [f"failed: {what}, rank {rank}" for rank in range(distributed.get_world_size())]
    store.set(keys[distributed.get_rank()], "")
    try:
        store.wait(keys, timedelta(seconds=FAILURE_WINDOW_SECONDS))
    except distributed.DistError:
        return False
    return True
