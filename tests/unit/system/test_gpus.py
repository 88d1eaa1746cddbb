import sys

import pytest

from pretraining.errors import UserError
from pretraining.system.gpus import (
    GPU_TYPES,
    SHORT_NAMES,
    driver_gpu_names,
    find_gpu_type,
    full_gpu_name,
    gpu_type_of,
    peak_flops_per_second,
)

NVLINK_WITHOUT_SXM = ("b200", "h200", "h100", "h800", "h20")  # the driver's names do not say it


def test_only_the_exact_name_of_a_gpu_has_its_peak() -> None:
    assert peak_flops_per_second("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops_per_second("NVIDIA A100-SXM4-80GB") == 311.9e12
    for near in ("NVIDIA RTX A4000", "NVIDIA GB200", "NVIDIA GeForce RTX 4090 D", "NVIDIA H800 PCIe"):
        assert peak_flops_per_second(near) is None


def test_a_kind_is_found_by_its_short_name_and_by_the_drivers() -> None:
    for name, kind in GPU_TYPES.items():
        assert find_gpu_type(name) is gpu_type_of(kind.driver_name) is kind
        assert 16e9 <= kind.memory_bytes <= 290e9
        assert 70 <= kind.board_watts <= 1100
        assert 3 <= kind.pcie_generation <= 6
        assert kind.has_bf16 is not name.startswith("v100")
        assert kind.nvlink_gb_per_second == 0 or "SXM" in kind.driver_name or name in NVLINK_WITHOUT_SXM
    with pytest.raises(UserError, match=r"--gpu_type h2000: is not known \(did you mean h200\?\)"):
        find_gpu_type("h2000")


@pytest.mark.parametrize(
    ("name", "gibibytes"), [("h200", 139.8), ("b200", 178.35), ("rtx_5090", 31.37), ("rtx_4090", 23.52)]
)
def test_the_memory_is_no_more_than_such_gpus_have_reported(name: str, gibibytes: float) -> None:
    assert 0.985 * gibibytes <= find_gpu_type(name).memory_bytes / 2**30 <= gibibytes


def test_pci_express_doubles_with_each_generation() -> None:
    rates = [find_gpu_type(name).pcie_bytes_per_second for name in ("v100", "a100", "h100")]
    assert rates == [15.75e9, 31.5e9, 63e9]


def test_a_name_without_the_memory_means_the_kind_that_the_plan_names() -> None:
    assert {name: full_gpu_name(name) for name in ("a100", "v100", "h100")} == {
        "a100": "a100_80gb",
        "v100": "v100_32gb",
        "h100": "h100",
    }
    assert find_gpu_type("a100").driver_name == "NVIDIA A100-SXM4-80GB"
    assert all(full_gpu_name(name) in GPU_TYPES for name in SHORT_NAMES)


def test_without_a_driver_or_its_package_there_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(driver_gpu_names(), list)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_gpu_names() == []
