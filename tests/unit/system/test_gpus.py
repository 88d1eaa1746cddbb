import pytest

from pretraining.errors import UserError
from pretraining.system.gpus import GPU_TYPES, driver_gpu_names, find_gpu_type, gpu_type_of, peak_flops_per_second


def test_only_the_exact_name_of_a_gpu_has_its_peak() -> None:
    assert peak_flops_per_second("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops_per_second("NVIDIA A100-SXM4-80GB") == 311.9e12
    for near in ("NVIDIA RTX A4000", "NVIDIA GB200", "NVIDIA GeForce RTX 4090 D", "NVIDIA H800 PCIe"):
        assert peak_flops_per_second(near) is None


def test_a_kind_is_found_by_its_short_name_and_by_the_drivers() -> None:
    for name, kind in GPU_TYPES.items():
        assert find_gpu_type(name) is gpu_type_of(kind.driver_name) is kind
        assert kind.memory_bytes >= 24e9
        assert 100 <= kind.board_watts <= 1000
    assert find_gpu_type("h200").memory_bytes == 141e9
    with pytest.raises(UserError, match=r"--gpu_type h20: is not known \(did you mean h200\?\)"):
        find_gpu_type("h20")


def test_without_a_driver_there_are_no_names() -> None:
    assert isinstance(driver_gpu_names(), list)
