"""Starts pretrain.py and does something to its processes at a certain place; takes its flags and launchers.

AT=step:3, micro step:3, batch:2 (of evaluations, counted together) or end (before the last evaluation); DO is a line of
Python with what stands in `WORDS`; BY_RANK does it, 0 without. DUMP_SECONDS is how long a process that finds a hang
waits for the stacks of the others.
"""

import os
import signal
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

from transformers import TrainerCallback

import pretrain
from pretraining.cli.program import run_program
from pretraining.training import finish as ending
from pretraining.training import run as program
from pretraining.training.stopping import hang_watchdog


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sleep_for_ever() -> None:
    time.sleep(3600)


def wait_in_a_collective() -> None:
    """For what never comes, where Python's signal handlers do not run."""
    import torch

    torch.distributed.recv(torch.zeros(1), src=1 - torch.distributed.get_rank())


WORDS: dict[str, Any] = {
    **{name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGKILL")},
    **{"kill": os.kill, "group": os.killpg, "me": os.getpid(), "us": os.getpgrp(), "sleep_for_ever": sleep_for_ever},
    **{"wait_in_a_collective": wait_in_a_collective, "Timer": Timer},
    **{"launcher": os.getppid(), "runner": parent_of(os.getppid()), "Path": Path, "sleep": time.sleep},
}


class Interruption(TrainerCallback):
    def __init__(self) -> None:
        self.num_batches = 0

    def at(self, place: str) -> None:
        if os.environ.get("AT") == place and os.environ.get("RANK") == os.environ.get("BY_RANK", "0"):
            exec(os.environ["DO"], WORDS)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at(f"step:{state.global_step + 1}")

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at(f"micro step:{state.global_step + 1}")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.num_batches += 1
        self.at(f"batch:{self.num_batches}")


def main() -> None:
    make_trainer, evaluate_at_end = program.make_trainer, ending.evaluate_at_end
    interruption = Interruption()

    def make_interrupted(*args: Any) -> Any:
        trainer = make_trainer(*args)
        trainer.callback_handler.callbacks.insert(0, interruption)
        return trainer

    def evaluate_interrupted(*args: Any) -> None:
        interruption.at("end")
        evaluate_at_end(*args)

    hang_watchdog.OTHERS_DUMP_SECONDS = float(os.environ.get("DUMP_SECONDS", hang_watchdog.OTHERS_DUMP_SECONDS))
    program.make_trainer, ending.evaluate_at_end = make_interrupted, evaluate_interrupted
    run_program(pretrain.main)


if __name__ == "__main__":
    main()
    sys.exit()
