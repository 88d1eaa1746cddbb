"""Starts pretrain.py with norms that are read 10 % too large; takes its flags and launchers."""

import torch

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.model import weights

if __name__ == "__main__":
    right = weights.fill_parameter

    def wrong(parameter: torch.Tensor, values: torch.Tensor) -> None:
        right(parameter, values * 1.1 if values.ndim == 1 else values)

    weights.fill_parameter = wrong
    run_program(pretrain.main)
