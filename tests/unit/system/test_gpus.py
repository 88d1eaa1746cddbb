import os
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.system import gpus
from pretraining.system.gpus import (
    ALLOCATOR_VARIABLE,
    GPU_TYPES,
    OLD_ALLOCATOR_VARIABLES,
    driver_gpu_names,
    find_gpu_type,
    gpu_type_of,
    peak_flops_per_second,
    use_expandable_segments,
)


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


def test_segments_can_grow_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DRIVER_DEVICE", tmp_path / "nvidiactl")
    use_expandable_segments()
    assert ALLOCATOR_VARIABLE not in os.environ
    (tmp_path / "nvidiactl").touch()
    use_expandable_segments()
    assert os.environ[ALLOCATOR_VARIABLE] == "expandable_segments:True"
    monkeypatch.delenv(ALLOCATOR_VARIABLE)


@pytest.mark.parametrize("name", [ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES])
def test_a_setting_of_the_allocator_is_kept(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for each in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:512")
    monkeypatch.setattr(gpus, "DRIVER_DEVICE", tmp_path)
    use_expandable_segments()
    assert os.environ[name] == "max_split_size_mb:512"
    assert name == ALLOCATOR_VARIABLE or ALLOCATOR_VARIABLE not in os.environ
