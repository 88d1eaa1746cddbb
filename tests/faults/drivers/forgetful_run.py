"""Starts pretrain.py with a resume that forgets the random states, so that dropout draws others than it did."""

import pretrain
from pretraining.cli.program import run_program

if __name__ == "__main__":
    from pretraining.training.trainer.trainer import PretrainingTrainer

    PretrainingTrainer._load_rng_state = lambda *_: None
    run_program(pretrain.main)
