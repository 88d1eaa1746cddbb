"""Bytes over PCI Express, and the speed that follows."""

from dataclasses import replace

import pytest

from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.speed import Speeds, host_traffic, recomputed_share, tokens_per_second_per_gpu
from pretraining.system.gpus import find_gpu_type
from tests.unit.planning.layouts import layout_of

P = 6_738_415_616


def speed(layout: TrainingLayout, *, micro: int = 1, kind: str = "h100", gbits: float = 400) -> float:
    number = layout.num_processes
    batch = GlobalBatch(4096, micro, 1024 // micro // number, number)
    layout = replace(layout, micro_batch_blocks=micro)
    found = tokens_per_second_per_gpu(layout, batch, find_gpu_type(kind), Speeds(0.4, gbits * 1e9 / 8))
    assert found is not None
    return found


def test_no_speed_is_known_of_unlisted_gpus_and_of_fp32() -> None:
    layout, batch, speeds = layout_of("llama2_7b"), GlobalBatch(4096, 1, 1024, 1), Speeds(0.4, 5e10)
    assert tokens_per_second_per_gpu(layout, batch, None, speeds) is None
    assert tokens_per_second_per_gpu(replace(layout, precision="fp32"), batch, find_gpu_type("h100"), speeds) is None


def test_offloaded_sums_cross_twice_per_micro_step() -> None:
    """Four times the 13.5 GB of one copy in bf16, if they are in fp32."""
    assert host_traffic(layout_of("llama2_7b")).per_step(8) == 0
    fp32 = replace(layout_of("llama2_7b"), offload_optimizer=True)
    bf16 = replace(fp32, grad_accum_dtype="bf16")
    assert (host_traffic(fp32).sums, host_traffic(bf16).sums) == (8 * P, 4 * P)
    # Once per step: the gradients in fp32 to the host, the weights in bf16 back.
    assert host_traffic(bf16).step == 6 * P
    assert host_traffic(bf16).per_step(32) == 32 * 4 * P + 6 * P
    both = replace(bf16, offload_parameters=True)
    assert (host_traffic(both).weights, host_traffic(both).step) == (4 * P, 4 * P)
    two = replace(bf16, num_processes=2, num_local_processes=2)
    assert host_traffic(two).sums == pytest.approx(2 * P, rel=1e-4), "each GPU has its own link"


def test_recomputed_layers() -> None:
    layout = layout_of("llama2_7b")
    shares = [recomputed_share(replace(layout, checkpoint_every=every)) for every in (None, 1, 2, 5)]
    assert shares == [0, 1, 1 / 2, 7 / 32]


def test_more_blocks_pay_off_where_something_is_copied() -> None:
    one = replace(layout_of("llama2_7b"), grad_accum_dtype="bf16", checkpoint_every=1)
    assert speed(one) == speed(one, micro=8) == pytest.approx(989.4e12 * 0.4 * 3 / 4 / 46.09e9, rel=1e-3)
    offloaded = replace(one, offload_optimizer=True)
    assert speed(one) > speed(offloaded, micro=8) > 1.5 * speed(offloaded)
    assert speed(offloaded) > speed(replace(offloaded, grad_accum_dtype="fp32"))
    # Eight GPUs: NVLink hides behind the computation of 0.5 s (0.62 s on a PCIe card), PCI Express, 0.71 s, does not.
    eight = layout_of("llama2_7b", num_gpus=8)
    assert speed(eight) == speed(eight, micro=8)
    assert speed(eight, micro=8, kind="h100_pcie") > 1.1 * speed(eight, kind="h100_pcie")


def test_accumulation_favors_the_stage_that_reduces_once() -> None:
    """On PCI Express, with 64 micro steps: ZeRO-3 sends in each of them, ZeRO-1 once."""
    three = layout_of("llama2_7b", num_gpus=8)
    two, one = (replace(three, zero=replace(three.zero, stage=stage)) for stage in (2, 1))
    by_pcie = [speed(layout, kind="l40s") for layout in (one, three, two)]
    assert by_pcie == sorted(by_pcie, reverse=True), "what ZeRO-2 sends hides behind nothing"
    assert speed(one, kind="h100") == pytest.approx(speed(three, kind="h100"), rel=0.01)


def test_a_slow_network_between_machines_favors_hpz_and_lower_stages() -> None:
    three = layout_of("llama2_7b", num_gpus=16)
    hpz, one = (
        replace(three, zero=replace(three.zero, **change)) for change in ({"hpz_partition_size": 8}, {"stage": 1})
    )
    assert speed(three, gbits=100) < 0.5 * speed(hpz, gbits=100) < 0.5 * speed(one, gbits=100)
    assert speed(three, gbits=10**5) == speed(layout_of("llama2_7b", num_gpus=8)), "as fast as one machine"
