"""Padding, partitions and gradients of the flat groups, worked out by hand."""

from dataclasses import replace

import pytest

from pretraining.planning.footprint import PHASES, START, footprint
from pretraining.planning.layout import TrainingLayout, ZeroSettings
from pretraining.planning.model_states import ModelStates, model_states
from pretraining.planning.zero.flat_groups import FlatGroup, flat_groups, gradient_bytes, message_bytes, reduced_bytes
from pretraining.system.gpus import find_gpu_type
from tests.unit.planning.layouts import LLAMA2_7B, layout_of

P = 6_738_415_616
# 35 + 25 x 4 + 15 x 3 + 35 = 215 weights in matrices, three norms of 5.
SMALL = replace(
    *(LLAMA2_7B,),
    **{"hidden_size": 5, "num_hidden_layers": 1, "vocab_size": 7, "intermediate_size": 3, "num_attention_heads": 1},
    **{"num_key_value_heads": 1, "head_dim": 5},
)


def small(stage: int, num_processes: int = 3, **changes: object) -> TrainingLayout:
    settings = ZeroSettings(10**9, 25, 10, 10**9, stage=stage)
    layout = replace(layout_of("llama2_7b"), shape=SMALL, zero=settings, num_processes=num_processes)
    return replace(layout, num_local_processes=num_processes, **changes)


def at_stage(stage: int, num_gpus: int = 8, **changes: object) -> TrainingLayout:
    layout = layout_of("llama2_7b", num_gpus=num_gpus)
    return replace(layout, zero=replace(layout.zero, stage=stage), **changes)


def test_groups_are_padded_to_two_weights_per_process() -> None:
    assert [(group.padded, group.partition) for group in flat_groups(small(1))] == [(216, 72), (18, 6)]
    assert [group.padded for group in flat_groups(small(1, num_processes=1))] == [216, 16]


def test_a_parameter_belongs_to_each_process_that_updates_a_part_of_it() -> None:
    group = FlatGroup((5, 4, 3), 2)  # 12 weights: the second parameter is cut after one weight
    assert (group.overlapping(0), group.overlapping(1)) == ([5, 4], [4, 3])
    # A partition can be padding alone.
    lonely = FlatGroup((1,), 4)
    assert [lonely.overlapping(rank) for rank in range(4)] == [[1], [], [], []]


def test_states_of_stages_1_and_2() -> None:
    one, two = model_states(small(1)), model_states(small(2))
    steps = 4 * 2  # each group counts its steps, in four bytes
    expected = {"whole_weights": 0, "second_copy": 0, "gradient_copies": 0, "updated_weights": 0}
    shared = {"weights": 2 * (216 + 18), "master_weights": 4 * 78, "moments": 8 * 78 + steps, **expected}
    assert one == ModelStates(gradients=4 * (216 + 18), **shared)
    assert two == ModelStates(gradients=4 * 78, **shared)


def test_sums_in_the_type_of_the_gradients_are_kept_whole_in_stage_2() -> None:
    layout = small(2, grad_accum_dtype="bf16")
    groups = flat_groups(layout)
    # Of 72 weights each: 35 + 25 + 25; 25 + 25 + 25 + 15; 15 + 15 + 35 and one of padding. Then of the norms.
    assert [sum(groups[0].overlapping(rank)) for rank in range(3)] == [85, 90, 80]
    assert [sum(groups[1].overlapping(rank)) for rank in range(3)] == [10, 10, 5]
    assert gradient_bytes(layout) == reduced_bytes(layout) == 2 * (90 + 10)


def test_stage_1_keeps_all_sums_and_reduces_them_once() -> None:
    assert gradient_bytes(small(1, precision="fp32", grad_accum_dtype="fp32")) == 4 * 230
    assert gradient_bytes(small(1, grad_accum_dtype="bf16")) == 2 * 230
    fp16 = small(1, precision="fp16")
    assert (gradient_bytes(fp16), reduced_bytes(fp16)) == (4 * 230, 4 * 78)
    assert message_bytes(fp16) == 25 * (4 + 2), "a bucket of fp32 sums is cast to be sent"
    assert message_bytes(small(1)) == (4 + 2) * 234, "BF16_Optimizer sends all at once"
    assert message_bytes(at_stage(1)) == pytest.approx(2 * P, rel=1e-3), "and casts a large group where it is"


def test_the_7b_on_eight_gpus_as_worked_out_by_hand() -> None:
    """GB per GPU: weights 2P, sums 4P or 4P/8, master weights and moments 12P/8."""
    for stage, each in ((1, 2 + 4 + 12 / 8), (2, 2 + 4 / 8 + 12 / 8), (3, 18 / 8)):
        states = model_states(at_stage(stage))
        total = states.weights + states.gradients + states.master_weights + states.moments
        assert total == pytest.approx(each * P, rel=1e-3)


def test_lower_stages_gather_nothing_and_build_the_model_on_the_gpu() -> None:
    parts = {stage: footprint(at_stage(stage)) for stage in (1, 2, 3)}
    names = {stage: {part.name for part in found.on_gpu} for stage, found in parts.items()}
    assert "gathered weights" in names[3] - names[2] - names[1]
    assert parts[1].host_bytes == parts[2].host_bytes == parts[3].host_bytes, "of the export"


def test_bf16_gradients_of_stage_1_stay_unless_they_are_added_at_once() -> None:
    freed, kept = (footprint(at_stage(1, frees_gradients_at_once=at_once)) for at_once in (True, False))
    (part,) = [part for part in kept.on_gpu if part.name == "gradients of a micro step"]
    assert part.num_bytes == 2 * P
    assert part.phases == PHASES[:3]
    assert kept.gpu_bytes > freed.gpu_bytes + 1.5 * P


def test_an_offloaded_optimizer_leaves_fp32_sums_on_the_gpu() -> None:
    layout = at_stage(2, offload_optimizer=True)
    parts = {part.name: part.num_bytes for part in footprint(layout).on_gpu}
    assert parts["gradients"] == pytest.approx(4 * P / 8, rel=1e-3)
    assert not parts.keys() & {"master weights", "optimizer moments"}
    sizes = [group.partition for group in flat_groups(layout)]
    # The copies of gradients, master weights, updated weights, and one gradient.
    pinned = [*(4 * size for size in sizes * 2), *(2 * size for size in sizes), 2 * 32000 * 4096]
    rounding = sum((1 << (size - 1).bit_length()) - size for size in pinned)
    on_host = {part.name: part.num_bytes for part in footprint(layout).on_host}
    assert on_host["rounding of pinned memory"] == 8 * rounding
    in_host = replace(layout, grad_accum_dtype="bf16")
    assert "gradients" not in {part.name for part in footprint(in_host).on_gpu}


def test_weights_and_their_flat_copy_are_there_at_once_when_a_run_starts() -> None:
    """The 7B on 8 x rtx_4090: both in bf16 are 27 GB, and a GPU has 25, so each process has them in host memory."""
    layout = at_stage(2, offload_optimizer=True, device_bytes=find_gpu_type("rtx_4090").memory_bytes)
    needed = footprint(layout)
    (start,) = [part for part in needed.on_host if part.phases == (START,)]
    assert start.num_bytes == pytest.approx(8 * 4 * P, rel=1e-3)
    assert needed.host_bytes > 8 * 4 * P
    assert needed.peak_phase != START
    large = footprint(replace(layout, device_bytes=80 * 10**9, checkpoint_every=1))
    assert large.peak_phase == START
    assert large.gpu_bytes > 4 * P
    assert not [part for part in large.on_host if part.phases == (START,)]
    in_fp32 = replace(layout, offload_optimizer=False, zero=replace(layout.zero, stage=1))
    assert START not in {part.phases[0] for part in footprint(in_fp32).on_host}, "BF16_Optimizer does not ask"
