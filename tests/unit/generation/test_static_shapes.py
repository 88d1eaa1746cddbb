"""Lengths are padded on a GPU only; a decode step is captured at its second call at the earliest."""

import torch

from pretraining.generation.static_shapes import LENGTH_MULTIPLE, StepGraphs, length_multiple, round_up


def test_lengths_are_padded_on_a_gpu_only() -> None:
    assert length_multiple(torch.device("cpu")) == 1
    assert length_multiple(torch.device("cuda", 1)) == LENGTH_MULTIPLE
    assert [round_up(number, 128) for number in (1, 127, 128, 129)] == [128, 128, 128, 256]
    assert [round_up(number, 1) for number in (0, 1, 129)] == [0, 1, 129]


def test_the_first_step_of_each_shape_is_computed_as_it_is() -> None:
    """Kernels and libraries load in it. The graphs themselves: tests/gpu/test_kernels.py."""
    graphs, calls = StepGraphs(), []

    def step(inputs: torch.Tensor, num_keys: int) -> torch.Tensor:
        calls.append((tuple(inputs.shape), num_keys))
        return inputs.float()

    for num_rows, num_keys in ((2, 128), (2, 256), (3, 128)):
        inputs = torch.ones(2, num_rows)
        assert torch.equal(graphs.run(step, inputs, num_keys), inputs)
    assert calls == [((2, 2), 128), ((2, 2), 256), ((2, 3), 128)]
