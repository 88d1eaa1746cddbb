"""Starts pretrain.py on the terminal that TERMINAL names: a fork of a process that has everything imported has none."""

import os

import pretrain
from pretraining.cli.program import run_program

if __name__ == "__main__":
    for number in (0, 1, 2):
        os.dup2(os.open(os.environ["TERMINAL"], os.O_RDWR | os.O_NOCTTY), number)
    run_program(pretrain.main)
