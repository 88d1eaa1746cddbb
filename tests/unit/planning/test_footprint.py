from dataclasses import replace

import pytest

from pretraining.planning.footprint import PHASES, Footprint, footprint
from tests.unit.planning.layouts import layout_of

GIB = 2**30


def named(parts: Footprint) -> dict[str, int]:
    return {part.name: part.num_bytes for part in parts.on_gpu}


def test_one_gpu_with_the_7b_as_worked_out_by_hand() -> None:
    layout = replace(layout_of("llama2_7b"), grad_accum_dtype="bf16")
    parts = named(footprint(layout))
    # A single process adds gradients at once; a layer of 202 M is smaller than two of the largest matrix, 131 M.
    assert not parts.keys() & {"reduce bucket", "gradients of whole layers"}
    assert parts["gradients in flight"] == 2 * 2 * 32000 * 4096
    # Flattened gradients in bf16 and then in fp32: 6 bytes for each weight of a sub-group.
    assert parts["casts of the step"] / GIB == pytest.approx(5.6, abs=0.1)
    small = replace(layout, zero=replace(layout.zero, sub_group_size=200_000_000))
    assert named(footprint(small))["casts of the step"] / GIB == pytest.approx(1.2, abs=0.2)
    assert "gathered weights" not in parts
    assert parts["logits and loss"] == 12 * 4096 * 32000


def test_the_peak_is_the_sum_of_its_phase() -> None:
    for layout in (layout_of("llama2_7b"), replace(layout_of("llama2_7b", num_gpus=8), checkpoint_every=1)):
        needed = footprint(layout)
        at = {phase: sum(p.num_bytes for p in needed.on_gpu if phase in p.phases) for phase in PHASES}
        assert needed.gpu_bytes == max(at.values()) == at[needed.peak_phase]


def test_more_gpus_share_the_states_but_not_the_activations() -> None:
    one, eight = (named(footprint(layout_of("llama2_7b", num_gpus=number))) for number in (1, 8))
    for name in ("gradients", "master weights", "optimizer moments"):
        assert eight[name] == pytest.approx(one[name] / 8, rel=1e-4)
    assert eight["activations"] == one["activations"]
    assert eight["gathered weights"] == 2 * 10**9


def test_offload_moves_bytes_to_the_host() -> None:
    plain = layout_of("llama2_7b", num_gpus=2)
    optimizer = replace(plain, offload_optimizer=True)
    both = replace(optimizer, offload_parameters=True)
    on_gpu = [footprint(layout).gpu_bytes for layout in (plain, optimizer, both)]
    on_host = [footprint(layout).host_bytes for layout in (plain, optimizer, both)]
    assert on_gpu == sorted(on_gpu, reverse=True)
    assert on_host == sorted(on_host)
    # Of each parameter 4 bytes of gradients, their copy, master weights and two moments, and rounding of pinned memory.
    assert on_host[1] - on_host[0] > 20 * 6.738e9


def test_what_is_offloaded_to_disk_takes_no_host_memory() -> None:
    in_memory = replace(layout_of("llama2_7b", num_gpus=2), offload_optimizer=True, offload_parameters=True)
    on_disk = replace(in_memory, optimizer_on_disk=True, parameters_on_disk=True)
    assert footprint(on_disk).gpu_bytes == footprint(in_memory).gpu_bytes
    names = {part.name for part in footprint(on_disk).on_host}
    assert not names & {"master weights", "optimizer moments", "weights", "pinned pool of the weights"}
    # The sums of the gradients stay in host memory, in fp32.
    assert next(part for part in footprint(on_disk).on_host if part.name == "gradients").num_bytes == 4 * 6_738_415_616


def test_weights_at_export_are_in_their_own_type() -> None:
    parts = [footprint(replace(layout_of("llama2_7b"), precision=name)).on_host for name in ("bf16", "fp32")]
    half, full = (next(part.num_bytes for part in found if "export" in part.name) for found in parts)
    assert full == 2 * half == 4 * 6_738_415_616


def test_without_a_gpu_all_is_in_host_memory_of_all_processes() -> None:
    needed = footprint(layout_of("llama2_7b", num_gpus=2), has_gpu=False)
    assert needed.on_gpu == ()
    assert needed.host_bytes > 18 * 6.738e9


def test_messages_of_a_layer_each_are_in_flight_between_gpus() -> None:
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    zero = {"reduce_bucket_size": "auto", "stage3_max_live_parameters": "auto"}
    needed = footprint(layout_of("llama2_7b", num_gpus=8, zero=zero))
    parts = named(needed)
    assert parts["reduce bucket"] == 2 * layer
    assert parts["gathered weights"] == 2 * (10**9 + 2 * layer)
    assert parts["gradients of whole layers"] == 2 * 2 * layer, "those of one, and its message"
    assert parts["layers ahead of GPU (assumed)"] == 2 * 4 * (layer + layer), "weights and gradients of four"
    assert "layers ahead of GPU (assumed)" not in named(needed.counted)
    alone = named(footprint(replace(layout_of("llama2_7b", zero=zero), offload_optimizer=True)))
    assert alone["layers ahead of GPU (assumed)"] == 2 * 4 * layer, "nothing is gathered"


def test_adamw_with_bf16_moments_has_both_in_fp32_a_chunk_at_a_time() -> None:
    layout = replace(layout_of("llama2_7b"), block_length=64)  # so that the step has the peak
    for has_gpu, chunk in ((True, 2**23), (False, 2**25)):
        plain, chunked = (
            next(part.num_bytes for part in found.on_gpu + found.on_host if part.name == "casts of the step")
            for optimizer in ("adamw", "adamw_bf16")
            for found in (footprint(replace(layout, optimizer=optimizer), has_gpu=has_gpu),)
        )
        assert chunked - plain == 2 * 4 * chunk
