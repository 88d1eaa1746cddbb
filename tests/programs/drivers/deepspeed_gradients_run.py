"""Starts pretrain.py with DeepSpeed's own path of the gradients and its waits; takes its flags and launchers."""

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.trainer import hf_internals

if __name__ == "__main__":
    hf_internals.avoid_host_waits = lambda _: None
    run_program(pretrain.main)
