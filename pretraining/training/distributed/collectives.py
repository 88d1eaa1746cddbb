"""What processes tell each other about their run: small things, by way of the process group."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from pretraining.errors import UserError

Result = TypeVar("Result")

FAIL_WITHIN_SECONDS = 60.0
TELL_SECONDS = 60.0


def is_main_process() -> bool:
    """Whether this is the first process of all."""
    return distributed.get_rank() == 0


def all_gather_objects(value: Any) -> list[Any]:
    """That of each process, on all of them."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """That of the first process, on all of them."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def run_on_main(work: Callable[[], Result]) -> Result:
    """What the first process gets from `work`, on all of them.

    Raises:
        UserError: on all processes, when it is raised there, or a file cannot be read or written.
    """
    result, problems = None, None
    if is_main_process():
        try:
            result = work()
        except UserError as error:
            problems = error.problems
        except OSError as error:
            problems = (f"{error.filename}: {error.strerror}; mend it, or choose another folder",)
    result, problems = broadcast_object((result, problems))
    if problems is not None:
        raise UserError(*problems)
    return result


def run_on_main_polling(work: Callable[[], Result]) -> Result:
    """What the first process gets from `work`, on all of them, however long that takes: not within --ddp_timeout."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work) if is_main_process() else None
    while broadcast_object(future is not None and bool(wait([future], timeout=TELL_SECONDS).not_done)):
        pass
    return broadcast_object(None if future is None else future.result())


def all_ranks_failed(what: str) -> bool:
    """Whether every process calls this within a minute; each does where it failed at `what`.

    By way of the store through which they met: the process group may be waiting for the one that failed.
    """
    store = distributed.distributed_c10d._get_default_store()
    keys = [f"failed: {what}, rank {rank}" for rank in range(distributed.get_world_size())]
    store.set(keys[distributed.get_rank()], "")
    try:
        store.wait(keys, timedelta(seconds=FAIL_WITHIN_SECONDS))
    except distributed.DistError:
        return False
    return True
