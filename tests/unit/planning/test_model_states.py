from dataclasses import replace

import pytest

from pretraining.planning.layout import TrainingLayout, ZeroSettings
from pretraining.planning.model_states import ModelStates, model_states, sub_groups
from tests.unit.planning.layouts import LLAMA2_7B, layout_of

P = 6_738_415_616


def states(layout: TrainingLayout) -> ModelStates:
    return model_states(layout)


def on_gpu(layout: TrainingLayout) -> int:
    found = states(layout)
    return found.weights + found.gradients + found.master_weights + found.moments


def test_bytes_per_parameter_of_the_7b_on_one_gpu() -> None:
    layout = layout_of("llama2_7b")
    steps = 4 * len(sub_groups(layout))  # each counts its steps, in four bytes
    assert on_gpu(layout) == 18 * P + steps
    half = replace(layout, grad_accum_dtype="bf16")
    assert on_gpu(half) == 16 * P + steps
    assert on_gpu(half) / 2**30 == pytest.approx(100.4, abs=0.05)
    assert on_gpu(layout) / 2**30 == pytest.approx(113.0, abs=0.05)
    # Muon keeps one moment of the 6.476 B weights of the layers' matrices: 24.1 GiB less.
    muon = replace(half, optimizer="muon")
    assert (on_gpu(half) - on_gpu(muon)) / 2**30 == pytest.approx(24.1, abs=0.05)
    assert (on_gpu(half) - on_gpu(replace(half, optimizer="adamw_bf16"))) == 4 * P
    assert (on_gpu(half) - on_gpu(replace(half, optimizer="adamw_8bit"))) / 2**30 == pytest.approx(37.7, abs=0.3)
    assert on_gpu(replace(layout, precision="fp32")) == 20 * P + steps


def test_offloaded_bytes_per_parameter() -> None:
    layout = replace(layout_of("llama2_7b"), grad_accum_dtype="bf16", offload_optimizer=True)
    found, steps = states(layout), 4 * len(sub_groups(layout))
    assert found.gradients + found.gradient_copies + found.master_weights + found.moments == 18 * P + steps
    assert found.weights == 2 * P


def test_partitions_are_padded_and_small_parameters_stay_whole() -> None:
    shape = replace(LLAMA2_7B, hidden_size=5, num_hidden_layers=1, vocab_size=7, intermediate_size=3)
    shape = replace(shape, num_attention_heads=1, num_key_value_heads=1, head_dim=5)
    settings = ZeroSettings(10**9, 25, 10, 10**9)
    layout = replace(layout_of("llama2_7b"), shape=shape, zero=settings, num_processes=2)
    # 7 x 5 twice, 5 x 5 four times, 3 x 5 three times: 18, 13, 8; three norms of 5: 3.
    assert states(layout).weights == 2 * (2 * 18 + 4 * 13 + 3 * 8 + 3 * 3)
    assert states(layout).whole_weights == 2 * 3 * 6
    assert [group.size for group in sub_groups(layout)] == [112, 9]


def test_sub_groups_are_cut_where_they_are_large_enough() -> None:
    sizes = [group.size for group in sub_groups(layout_of("llama2_7b"))]
    assert sum(sizes) == P
    assert all(10**9 <= size < 1.2 * 10**9 for size in sizes[:-2])
