"""Starts pretrain.py; takes its flags and launchers.

KILL_AT=n kills every process after step n. SPIKE_AT=n makes the n-th step that a process makes look like a spike, once.
"""

import os
import signal
from itertools import count
from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.metrics.spike_detector import Anomaly
from pretraining.training.metrics.step_metrics import StepMetrics, StepResult


def plant(kill_at: int, spike_at: int) -> None:
    finish_step, on_step_end, steps = StepMetrics.finish_step, StepMetrics.on_step_end, count(1)

    def finish(self: StepMetrics, *, was_skipped: bool) -> StepResult:
        result = finish_step(self, was_skipped=was_skipped)
        return StepResult(result.loss, Anomaly("spike", 99.0)) if next(steps) == spike_at else result

    def die(self: StepMetrics, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        on_step_end(self, args, state, control, **kwargs)

    StepMetrics.finish_step, StepMetrics.on_step_end = finish, die


if __name__ == "__main__":
    plant(int(os.environ.get("KILL_AT", "0")), int(os.environ.get("SPIKE_AT", "0")))
    run_program(pretrain.main)
