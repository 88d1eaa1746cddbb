"""Starts pretrain.py with tiles whose losses are 1 % too large; takes its flags and launchers."""

from typing import Any

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.model import tiling

if __name__ == "__main__":
    right = tiling._losses_and_gradient_inplace

    def wrong(*tensors: Any) -> Any:
        losses, is_correct = right(*tensors)
        return losses * 1.01, is_correct

    tiling._losses_and_gradient_inplace = wrong
    run_program(pretrain.main)
