"""Starts pretrain.py and counts, in its micro steps, how often this project brings values of a tensor to the host.

On a GPU each of them waits until all that it was asked for is done. The number goes into the file SYNCHRONIZATIONS,
with that of the micro steps. Takes pretrain.py's flags and launchers.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.trainer.trainer import PretrainingTrainer

OURS = str(Path(pretrain.__file__).parent / "pretraining")
TORCH = str(Path(torch.__file__).parent)
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)  # .item(), bool() and the like
COPYING = ("tolist", "cpu", "numpy")
found = {"micro_steps": 0, "synchronizations": 0}


def count(frame: FrameType | None) -> None:
    """Only what this project's code asks for, by itself or by a function of torch."""
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back
    found["synchronizations"] += frame is not None and frame.f_code.co_filename.startswith(OURS)


class Counter(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING:
            count(sys._getframe(1))
        return function(*args, **(kwargs or {}))


def counted(copy: Callable[..., Any]) -> Callable[..., Any]:
    def copied(*args: Any, **options: Any) -> Any:
        count(sys._getframe(1))
        return copy(*args, **options)

    return copied


def main(argv: Sequence[str]) -> None:
    micro_step, copies = PretrainingTrainer.training_step, {name: getattr(torch.Tensor, name) for name in COPYING}

    def watched(trainer: PretrainingTrainer, *args: Any, **options: Any) -> torch.Tensor:
        found["micro_steps"] += 1
        for name, copy in copies.items():
            setattr(torch.Tensor, name, counted(copy))
        try:
            with Counter():
                return micro_step(trainer, *args, **options)
        finally:
            for name, copy in copies.items():
                setattr(torch.Tensor, name, copy)
            Path(os.environ["SYNCHRONIZATIONS"]).write_text(json.dumps(found))

    PretrainingTrainer.training_step = watched
    pretrain.main(argv)


if __name__ == "__main__":
    run_program(main)
