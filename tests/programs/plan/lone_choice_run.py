"""Starts pretrain.py as on machines that share no files: --deepspeed auto is for rank 0 alone. With FAILS it fails."""

import os
import sys
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.errors import UserError
from pretraining.system.launchers import process_rank


def plant() -> None:
    from pretraining.training.dry_run import deepspeed_choice

    choose = deepspeed_choice.choose

    def choose_on_first(*args: Any) -> Any:
        if os.environ.get("FAILS"):
            raise UserError("nothing can be planned; try another model")
        assert process_rank() == 0, "the choice is that of rank 0"
        return choose(*args)

    def no_files(_: Any) -> Any:
        raise AssertionError("the other machines do not see the file of rank 0")

    deepspeed_choice.choose, deepspeed_choice.from_first_rank = choose_on_first, no_files


if __name__ == "__main__":
    plant()
    run_program(lambda argv: pretrain.main(argv or sys.argv[1:]))
