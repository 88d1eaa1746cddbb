"""Few shapes on a GPU: lengths padded to multiples, and a CUDA graph of the decode step for each shape.

A GPU computes the token of a few rows faster than the host launches its kernels: about 22 per layer. A graph launches
all of them at once, but only for the shapes and addresses that it was captured with.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

LENGTH_MULTIPLE = 128  # of keys and of evaluated texts: 64 shapes up to 8,192 positions, half of one is padding
MAX_GRAPH_ROWS = 32  # with more rows the kernels of a step take longer than their launches

DecodeStep = Callable[[torch.Tensor, int], torch.Tensor]  # inputs [2, rows] and number of keys: logits of the rows


def length_multiple(device: torch.device) -> int:
    """The multiple to which lengths are padded on a device; on a CPU padding only costs time."""
    return LENGTH_MULTIPLE if device.type == "cuda" else 1


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number.

    >>> round_up(128, 128), round_up(129, 128), round_up(129, 1)
    (128, 256, 129)
    """
    return -(-number // multiple) * multiple


class StepGraphs:
    """CUDA graphs of the decode step of one decoder on one GPU, by the shapes of its arguments."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[int, int], _Graph | None] = {}
        self._logits: dict[int, torch.Tensor] = {}  # by rows; each graph writes there, so none keeps its own
        self._stream: torch.cuda.Stream | None = None  # torch's own would stay on the GPU of the first decoder

    def run(self, step: DecodeStep, inputs: torch.Tensor, num_keys: int) -> torch.Tensor:
        """Return the logits of a step, from the second call with the same shapes on by replaying its graph.

        The first call loads kernels and libraries, which cannot be captured. `step` must neither wait for the GPU nor
        depend on anything but its arguments and memory that stays where it is.
        """
        shape = (inputs.shape[1], num_keys)
        if shape not in self._graphs:
            self._graphs[shape] = None
            logits = step(inputs, num_keys)
            self._logits.setdefault(shape[0], torch.empty_like(logits))
            return logits
        found = self._graphs[shape]
        if found is None:
            found = self._graphs[shape] = self._capture(step, inputs, num_keys)
        found.inputs.copy_(inputs)
        found.graph.replay()
        return self._logits[shape[0]].clone()  # the next step writes over them

    def _capture(self, step: DecodeStep, inputs: torch.Tensor, num_keys: int) -> "_Graph":
        captured = next((one for one in self._graphs.values() if one is not None), None)
        pool = None if captured is None else captured.graph.pool()
        graph, static_inputs = torch.cuda.CUDAGraph(), inputs.clone()
        self._stream = self._stream or torch.cuda.Stream(inputs.device)  # one for all: they share a pool
        with torch.cuda.device(inputs.device), torch.cuda.graph(graph, pool=pool, stream=self._stream):
            self._logits[inputs.shape[1]].copy_(step(static_inputs, num_keys))
        return _Graph(graph, static_inputs)


class _Graph(NamedTuple):
    """A captured step, and where it reads."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
