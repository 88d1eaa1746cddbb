"""Starts pretrain.py with DeepSpeed's own path of the gradients, its waits, and nothing that watches its norms.

Takes the flags and launchers of pretrain.py.
"""

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.metrics import gradient_norms
from pretraining.training.trainer import hf_internals

if __name__ == "__main__":
    hf_internals.avoid_host_waits = lambda _: None
    gradient_norms.watch_gradient_norms = lambda *_: None
    run_program(pretrain.main)
