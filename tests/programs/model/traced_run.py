"""Starts pretrain.py with layers that torch traces as ever and runs as it traced them, without kernels of a compiler.

Says for each graph that it is one, and where one ends too early. Takes pretrain.py's flags and launchers.
"""

import functools
import sys
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager

import pretrain
from pretraining.cli.program import run_program


def run_traced(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    sys.stderr.write("a traced graph\n")
    return aot_eager(graph, inputs)


if __name__ == "__main__":
    torch.compile = functools.partial(torch.compile, backend=run_traced)
    torch._logging.set_logs(graph_breaks=True, recompiles=True)
    run_program(pretrain.main)
