"""Starts pretrain.py with a planted fault: process 1 takes another choice of --deepspeed auto than process 0."""

import sys
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import process_rank


def plant() -> None:
    from pretraining.training.dry_run import deepspeed_choice

    found_by_first = deepspeed_choice.from_first_rank

    def other(find: Any) -> Any:
        found = found_by_first(find)
        if process_rank() == 1:
            found["flags"] |= {"activation_checkpointing": not found["flags"]["activation_checkpointing"]}
        return found

    deepspeed_choice.from_first_rank = other


if __name__ == "__main__":
    plant()
    run_program(lambda argv: pretrain.main(argv or sys.argv[1:]))
