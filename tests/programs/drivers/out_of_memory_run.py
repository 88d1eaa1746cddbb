"""pretrain.py on GPUs that hold MAX_BLOCKS blocks at a time: with more, the last rank runs out of memory.

The others wait for it then, as they do on real GPUs. With FORKED_TRIALS a trial is a fork of this process, which has
loaded what a start of pretrain.py loads for seconds.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from types import SimpleNamespace
from typing import IO, Any

import torch

import pretrain
from pretraining.cli.program import run_program
from pretraining.system.launchers import num_processes, process_rank
from pretraining.training.dry_run import micro_batch
from pretraining.training.trainer.trainer import PretrainingTrainer


class Fork:
    """What a trial needs of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], *, env: dict[str, str], stdout: IO[str], **_: object) -> None:
        self._process = get_context("fork").Process(target=start, args=(command[1:], env, stdout.fileno()))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)

    def kill(self) -> None:
        self._process.kill()


def start(words: list[str], env: dict[str, str], output: int) -> None:
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    main()


def main() -> None:
    if "FORKED_TRIALS" in os.environ:
        micro_batch.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": Fork})  # type: ignore[attr-defined]
    compute_loss = PretrainingTrainer.compute_loss

    def limited(trainer: PretrainingTrainer, model: Any, inputs: Any, **options: Any) -> torch.Tensor:
        if process_rank() == num_processes() - 1 and len(inputs["input_ids"]) > int(os.environ["MAX_BLOCKS"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute_loss(trainer, model, inputs, **options)

    PretrainingTrainer.compute_loss = limited
    run_program(pretrain.main)  # not by its path, which the children would start then


if __name__ == "__main__":
    main()
