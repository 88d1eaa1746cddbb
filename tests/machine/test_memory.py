import pytest

from pretraining.cli.errors import UserError
from pretraining.machine.gpus import driver_gpu_names, peak_flops_per_second
from pretraining.machine.memory import available_host_bytes, model_state_bytes
from pretraining.training.preflight import check_memory

P = 6_738_415_616
GPU_80_BYTES = 80 * 2**30
TERABYTE = 10**12


def states(**changes):
    flags = {"half_precision": True, "offload_optimizer": False, "offload_parameters": False, **changes}
    return model_state_bytes(P, **{"optimizer": "adamw", "grad_accum_dtype": "fp32", **flags})


def test_bytes_per_parameter() -> None:
    assert (states().gpu, states().host) == (18 * P, 0)
    assert states(grad_accum_dtype="bf16").gpu == 16 * P
    assert states(optimizer="adamw_bf16").gpu == 14 * P
    assert (states(half_precision=False).gpu, states(half_precision=False).host) == (16 * P, 0)
    assert (states(offload_optimizer=True).gpu, states(offload_optimizer=True).host) == (2 * P, 20 * P)
    both = states(offload_optimizer=True, offload_parameters=True)
    assert (both.gpu, both.host) == (0, 22 * P)
    in_fp32 = states(half_precision=False, offload_optimizer=True, offload_parameters=True)
    assert (in_fp32.gpu, in_fp32.host) == (0, 24 * P)


@pytest.mark.parametrize(
    ("gpu_bytes", "num_processes", "changes", "host", "remedy"),
    [
        (None, 2, {"half_precision": False}, 24 * 10**9, "make quickstart"),
        (GPU_80_BYTES, 1, {}, TERABYTE, "--deepspeed ds_config_offload.json"),
        (GPU_80_BYTES, 1, {"offload_optimizer": True}, 64 * 10**9, "more GPUs"),
    ],
)
def test_a_model_that_cannot_fit_is_refused_with_the_remedy(gpu_bytes, num_processes, changes, host, remedy) -> None:
    with pytest.raises(UserError, match=remedy) as caught:
        check_memory(
            states(**changes),
            model="llama2_7b",
            gpu_bytes=gpu_bytes,
            num_processes=num_processes,
            available_host_bytes=host,
        )
    assert "--model llama2_7b: weights, gradients and optimizer state need" in str(caught.value)


def test_a_model_that_can_fit_is_not_refused() -> None:
    check_memory(states(), model="", gpu_bytes=GPU_80_BYTES, num_processes=8, available_host_bytes=TERABYTE)
    offloaded = states(offload_optimizer=True, offload_parameters=True)
    check_memory(offloaded, model="", gpu_bytes=GPU_80_BYTES, num_processes=1, available_host_bytes=TERABYTE)


def test_available_memory_is_read() -> None:
    assert 10**8 < available_host_bytes() < 10**14


def test_only_the_exact_name_of_a_gpu_has_its_peak() -> None:
    assert peak_flops_per_second("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops_per_second("NVIDIA A100-SXM4-80GB") == 311.9e12
    for near in ("NVIDIA RTX A4000", "NVIDIA GB200", "NVIDIA GeForce RTX 4090 D", "NVIDIA H800 PCIe"):
        assert peak_flops_per_second(near) is None


def test_without_a_driver_there_are_no_names() -> None:
    assert isinstance(driver_gpu_names(), list)
