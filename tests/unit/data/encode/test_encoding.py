import random
import threading
import time
from collections.abc import Iterator

import pytest

from pretraining.data.encode.encoding import AHEAD, ordered_parallel_map
from pretraining.data.input.documents import RawLine
from pretraining.data.input.files import input_file
from pretraining.data.input.reading import BATCH_BYTES, Position, RawBatch

FILE = input_file("a.jsonl", None, num_bytes=1, location="a.jsonl")


def batch(number: int, num_bytes: int) -> RawBatch:
    line = RawLine(number, 0, number, num_bytes, num_bytes, b"")
    return RawBatch(FILE, 0, [line], Position(0, 0, number), num_bytes, line.memory_bytes)


@pytest.mark.parametrize("num_workers", [1, 2, 4, 16])
def test_batches_come_out_in_order_and_few_are_under_way(num_workers: int) -> None:
    chance = random.Random(num_workers)
    sizes = [chance.choice([1, BATCH_BYTES, 3 * BATCH_BYTES, 50 * BATCH_BYTES]) for _ in range(200)]
    lock = threading.Lock()
    under_way = most_under_way = most_at_work = at_work = 0

    def read() -> Iterator[RawBatch]:
        nonlocal under_way
        for number, size in enumerate(sizes):
            under_way += size
            yield batch(number, size)

    def work(raw: RawBatch) -> int:
        nonlocal at_work, most_at_work
        with lock:
            at_work += 1
            most_at_work = max(most_at_work, at_work)
        time.sleep(chance.uniform(0, 0.004))
        with lock:
            at_work -= 1
        return raw.end.num_lines

    done = []
    for number in ordered_parallel_map(work, read(), num_workers=num_workers):
        most_under_way = max(most_under_way, under_way)
        under_way -= sizes[number]
        done.append(number)
    assert done == list(range(200))
    assert most_at_work <= num_workers
    # One that is read already waits for those before it.
    assert most_under_way <= (num_workers + AHEAD) * BATCH_BYTES + 2 * 50 * BATCH_BYTES


def test_what_a_worker_raises_comes_out() -> None:
    def work(raw: RawBatch) -> int:
        if raw.end.num_lines == 3:
            raise ValueError("three")
        return raw.end.num_lines

    with pytest.raises(ValueError, match="three"):
        list(ordered_parallel_map(work, (batch(number, BATCH_BYTES) for number in range(100)), num_workers=2))
