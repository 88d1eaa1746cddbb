"""Starts pretrain.py in a process in which nothing at all is unpickled: neither by this project nor by a library."""

from typing import Any

import torch

import pretrain
from pretraining.cli.program import run_program

load = torch.load


def load_weights_only(*args: Any, **kwargs: Any) -> Any:
    if kwargs.get("weights_only") is not True:
        raise AssertionError(f"unpickles {args}")
    return load(*args, **kwargs)


if __name__ == "__main__":
    torch.load = load_weights_only
    run_program(pretrain.main)
