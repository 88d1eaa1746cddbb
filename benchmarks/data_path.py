#!/usr/bin/env python3
"""Cost of reading blocks: time to start anywhere in the shuffled order, and memory of workers over time.

    python3 -m benchmarks.data_path --dataset blocks

Memory is that of this process and its workers together; shared pages count once, and the blocks themselves, which are
memory-mapped files, do not count. Results: docs/benchmarks/data_path.md.
"""

import logging
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.data.mixture import load_mixture
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.loader import BlockLoader, BlockStream
from pretraining.training.data.order import WINDOW, BlockOrder, make_order
from pretraining.training.data.phases import RunOrder
from pretraining.training.data.splits import open_training_data

logger = logging.getLogger("pretraining.benchmarks")

HALF_A_BILLION = 500_000_000
MARKS = (1_000, 2_500, 5_000, 10_000)  # number of blocks after which memory is measured


@dataclass(frozen=True)
class DataPathArguments:
    """Flags of this measurement."""

    dataset: str = flag("blocks", "block store to read")
    num_workers: list[int] = flag([0, 1, 4], "worker processes, one measurement for each")
    micro_batch: int = flag(4, "blocks of a micro batch")
    output: Path = flag(Path("docs/benchmarks/data_path.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Measure, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", DataPathArguments)], argv)
    lines = ["# Cost of reading blocks", "", *measure_order(), "", *measure_memory(arguments)]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    logger.info("result: %s", arguments.output)


def measure_order() -> Iterator[str]:
    """Time the first and the last blocks of an order of half a billion blocks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_at = time.perf_counter()
    order = BlockOrder((HALF_A_BILLION,), (WINDOW,), seed=42)
    for first in (0, HALF_A_BILLION - 4096):
        order.block_ids(np.arange(first, first + 4096))
    milliseconds = 1000 * (time.perf_counter() - started_at)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    yield (
        f"An order of {HALF_A_BILLION:,} blocks gives its first and its last 4,096 blocks in {milliseconds:.1f} ms and "
        f"{megabytes:.1f} MB: nothing is stored, every position is computed."
    )


def measure_memory(arguments: DataPathArguments) -> Iterator[str]:
    """Read blocks with each number of workers."""
    mixture = load_mixture([arguments.dataset], revision=None)
    data = open_training_data(mixture, BlockStream(RunOrder.of(make_order(mixture, seed=42))), BlockFields())
    length = mixture.origin.block_length
    yield (
        f"{len(data.train):,} blocks of {length:,} tokens, {os.cpu_count()} CPU cores; memory of all processes "
        "together:"
    )
    yield ""
    yield "| workers | " + " | ".join(f"after {mark:,} blocks" for mark in MARKS) + " |"
    yield "|---|" + "---|" * len(MARKS)
    for num_workers in arguments.num_workers:
        loader = BlockLoader(
            data.train,
            data.stream,
            GlobalBatch(length, arguments.micro_batch, 1, 1),
            group=0,
            num_blocks=MARKS[-1] + 1,
            num_workers=num_workers,
            collate_fn=collate_targets,
        )
        found = memory_at_marks(loader, arguments.micro_batch)
        yield f"| {num_workers} | " + " | ".join(f"{value / 1e6:.1f} MB" for value in found) + " |"


def memory_at_marks(loader: BlockLoader, micro_batch: int) -> list[int]:
    """Memory at each mark, in bytes."""
    reader, num_read, found = iter(loader), 0, []
    for mark in MARKS:
        while num_read < mark:
            next(reader)
            num_read += micro_batch
        found.append(anonymous_bytes())
    return found


def anonymous_bytes() -> int:
    """Anonymous memory of this process and its children (Pss_Anon of /proc/PID/smaps_rollup)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in ["self", *children]]
    lines = [line for rollup in rollups for line in rollup.splitlines() if line.startswith("Pss_Anon:")]
    return sum(1024 * int(line.split()[1]) for line in lines)


if __name__ == "__main__":
    run_program(main)
