"""Reads a block store with four workers; prints the memory of all processes after each of the numbers of blocks.

Arguments: the block store, and the numbers of blocks, ascending.
"""

import json
import sys

from benchmarks.data_path import anonymous_bytes
from pretraining.cli.program import run_program
from pretraining.data.mixture import load_mixture
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.loader import BlockLoader, BlockStream
from pretraining.training.data.order import make_order
from pretraining.training.data.phases import RunOrder
from pretraining.training.data.splits import open_training_data


def main(arguments: list[str]) -> None:
    mixture = load_mixture(arguments[:1], revision=None)
    data = open_training_data(mixture, BlockStream(RunOrder.of(make_order(mixture, seed=42))), BlockFields())
    marks = [int(word) for word in arguments[1:]]
    loader = BlockLoader(
        data.train,
        data.stream,
        GlobalBatch(mixture.origin.block_length, 8, 1, 1),
        group=0,
        num_blocks=marks[-1] + 1,
        num_workers=4,
        collate_fn=collate_targets,
    )
    reader, found = iter(loader), []
    for mark in marks:
        while loader.num_consumed < mark:
            next(reader)
        found.append(anonymous_bytes())
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    run_program(main)
