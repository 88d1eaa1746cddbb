"""Starts pretrain.py with workers that crash; takes its flags and launchers.

CRASHES=[[rank, step, how], ...] has one crash for each attempt, the last ones none: how is "SIGKILL", an exit code, or
"UserError". What was saved before is complete by then, however busy the machine is.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pretrain
from pretraining.cli.program import exit_process, run_program
from pretraining.errors import UserError
from pretraining.runs.checksums import COMPLETE_NAME
from pretraining.system.launchers import process_rank
from pretraining.system.supervision import this_restart


def plant(rank: int, step: int, how: str | int) -> None:
    from pretraining.training.callbacks.anomalies import AnomalyCallback

    on_step_end = AnomalyCallback.on_step_end

    def crash(self: AnomalyCallback, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        on_step_end(self, args, state, *rest, **more)
        if (process_rank(), state.global_step) == (rank, step):
            while not all((path / COMPLETE_NAME).exists() for path in Path(args.output_dir).glob("checkpoint-*")):
                time.sleep(0.02)
            if how == "UserError":
                raise UserError("--flag: planted")
            if isinstance(how, int):
                exit_process(how)
            os.kill(os.getpid(), signal.Signals[how])

    AnomalyCallback.on_step_end = crash


if __name__ == "__main__":
    restart = this_restart()
    attempt = 0 if restart is None else restart.number
    crashes = json.loads(os.environ["CRASHES"])
    if attempt < len(crashes):
        plant(*crashes[attempt])
    run_program(pretrain.main)
