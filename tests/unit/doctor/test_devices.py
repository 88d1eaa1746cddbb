"""GPUs that stand in for real ones, told of as NVML does: what they are, what is wrong with them, their links."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pretraining.doctor import all_reduce, devices, speed
from pretraining.doctor.finding import Finding
from pretraining.doctor.software import TorchState, assess
from pretraining.training.model.fp8 import MIN_CAPABILITY

H200 = {
    "name": "NVIDIA H200",
    "ecc": 0,
    "rows": (0, 0, 0, 0),
    "reasons": 1,
    "persistence": 1,
    "used": 0.6e9,
    "pids": [],
    "capability": (9, 0),
}
H200 |= {"nvlinks": 18, "width": 16, "reach": 0, "mig": [0, 0], "mode": 0}


def tells(field: str) -> Any:
    def query(gpu: dict, *_: object) -> Any:
        if gpu[field] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu[field]

    return query


def nvlink(gpu: dict, link: int) -> int:
    if link >= gpu["nvlinks"]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return pynvml.NVML_FEATURE_ENABLED


def memory(gpu: dict) -> SimpleNamespace:
    return SimpleNamespace(total=150.75e9, used=gpu["used"], free=150.75e9 - gpu["used"])


def peer(first: dict, second: dict, index: int) -> int:
    assert index == 0
    return first["reach"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Two H200, to be made sick; a handle is the GPU's dict, a value of None is "not supported"."""
    gpus = [dict(H200), dict(H200)]
    answers = {
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": gpus.__getitem__, "nvmlSystemGetCudaDriverVersion": lambda: 13000,
        "nvmlSystemGetDriverVersion": lambda: "580.82.07", "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetName": tells("name"), "nvmlDeviceGetTotalEccErrors": tells("ecc"),
        "nvmlDeviceGetRemappedRows": tells("rows"), "nvmlDeviceGetCurrentClocksEventReasons": tells("reasons"),
        "nvmlDeviceGetPersistenceMode": tells("persistence"), "nvmlDeviceGetComputeMode": tells("mode"),
        "nvmlDeviceGetMigMode": tells("mig"), "nvmlDeviceGetComputeRunningProcesses": tells("pids"),
        "nvmlDeviceGetNvLinkState": nvlink, "nvmlDeviceGetCurrPcieLinkWidth": tells("width"),
        "nvmlDeviceGetMaxPcieLinkWidth": lambda _: 16, "nvmlDeviceGetCurrPcieLinkGeneration": lambda _: 1,
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda _: 5, "nvmlDeviceGetP2PStatus": peer,
        "nvmlDeviceGetCudaComputeCapability": tells("capability"),
    }  # fmt: skip
    for name, answer in answers.items():
        assert callable(getattr(pynvml, name))
        monkeypatch.setattr(pynvml, name, answer)
    return gpus


def bad(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.status, finding.name) for finding in found if finding.status != "ok"]


def test_healthy_gpus(machine: list[dict]) -> None:
    found = [*devices.gpus([]), *devices.links([]), *devices.processes([])]
    assert bad(found) == []
    assert [finding.figure for finding in found] == [
        "580.82.07, for CUDA up to 13.0",
        "NVIDIA H200, 150.2 GB of 150.8 GB free, peak 989 TFLOP/s",
        "NVIDIA H200, 150.2 GB of 150.8 GB free, peak 989 TFLOP/s",
        "18 NVLinks, PCIe 5 x16",
        "18 NVLinks, PCIe 5 x16",
        "between all 1 pairs",
        "none",
    ]
    assert [finding.figures["gpu"] for finding in found[1:3]] == ["NVIDIA H200"] * 2
    assert devices.driver_gpu_names() == ["NVIDIA H200"] * 2
    assert devices.has_nvlink_everywhere()


@pytest.mark.parametrize(
    ("ill", "status", "words"),
    [
        ({"ecc": 3}, "failure", "3 uncorrected errors"),
        ({"rows": (0, 1, 1, 0)}, "failure", "a row waits to be remapped"),
        ({"rows": (0, 1, 0, 1)}, "failure", "replace the GPU"),
        ({"reasons": 0x8 | 0x40}, "warning", "hardware slowdown, too hot (hardware)"),
        ({"persistence": 0}, "warning", "persistence mode is off"),
        ({"mode": 2}, "failure", "Prohibited"),
        ({"mig": [1, 1]}, "warning", "MIG"),
        ({"used": 20e9}, "warning", "20.0 GB are in use"),
    ],
)
def test_a_sick_gpu(machine: list[dict], ill: dict, status: str, words: str) -> None:
    machine[1].update(ill)
    found = list(devices.gpus([]))
    assert bad(found) == [(status, "GPU 1")]
    (sick,) = [finding for finding in found if finding.status != "ok"]
    assert words in sick.figure
    assert sick.fix


def test_what_a_gpu_does_not_tell_is_no_ill(machine: list[dict]) -> None:
    unsupported = ("ecc", "rows", "reasons", "persistence", "mode", "mig", "pids", "width", "capability")
    machine[0].update(dict.fromkeys(unsupported), name="NVIDIA Unheard", nvlinks=0)
    machine[1].update(nvlinks=0)
    found = [*devices.gpus([]), *devices.links([]), *devices.processes([])]
    assert bad(found) == []
    assert "peak not known, so no MFU" in found[1].figure


def test_links_that_are_less_than_they_could_be(machine: list[dict]) -> None:
    machine[0].update(nvlinks=12, reach=1)
    machine[1].update(width=8)
    first, second, reach = devices.links([])
    assert first.figure == "12 NVLinks, PCIe 5 x16; another GPU has 18 NVLinks"
    assert second.figure == "18 NVLinks, PCIe 5 x8, of x16: is it seated in a full slot?"
    assert reach.figure == "missing between 1 of 1 pairs, which exchange through host memory"
    assert {first.status, second.status, reach.status} == {"warning"}


def test_others_on_a_gpu_are_named(machine: list[dict]) -> None:
    words = [sys.executable, "-c", "print(flush=True); input()", "pretrain.py"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # before that /proc may not have its words yet
        machine[1]["pids"] = [SimpleNamespace(pid=other.pid, usedGpuMemory=int(70e9))]
        machine[0]["pids"] = [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None)]  # of another container
        hidden, seen = devices.processes([])
        other.communicate(b"\n")
    assert (hidden.name, seen.name) == ("GPU 0", "GPU 1")
    assert f"{other.pid} (pretrain.py, " in seen.figure
    assert "uses 70.0 GB of its memory" in seen.figure
    assert "not visible from here) uses an unknown part" in hidden.figure


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((8, 9), ""),
        ((8, 0), "; compute capability 8.0 has no fp8: train without --fp8"),
        ((7, 5), "has no fp8: train without --fp8, and no bf16: train in fp32 or with --fp16"),
    ],
)
def test_a_gpu_without_fp8_says_so(machine: list[dict], capability: tuple[int, int], words: str) -> None:
    assert devices.MIN_FP8_CAPABILITY == MIN_CAPABILITY
    machine[1].update(capability=capability)
    (found,) = [finding for finding in devices.gpus([]) if finding.name == "GPU 1"]
    assert found.figure.endswith(f"989 TFLOP/s{words}" if capability != (7, 5) else words)


def test_gpus_without_a_driver() -> None:
    assert devices.assess_no_driver("Driver Not Loaded", num_devices=0).status == "ok"
    assert devices.assess_no_driver("Driver Not Loaded", num_devices=8).status == "failure"


TWO = ["NVIDIA H200", "NVIDIA H200"]
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by ..."


@pytest.mark.parametrize(
    ("seen", "status", "fix"),
    [
        (TorchState("2.13.0+cpu", None, 0, []), "ok", ""),
        (TorchState("2.13.0+cu130", "13.0", 0, [], num_devices=2), "ok", ""),  # the failure is that of the GPUs
        (TorchState("2.13.0+cu130", "13.0", 0, []), "warning", "docker run --gpus all IMAGE; nothing to do without"),
        (TorchState("2.13.0+cu130", "13.0", 2, TWO, (13, 0)), "ok", ""),
        (TorchState("2.13.0+cpu", None, 0, TWO, (12, 8)), "failure", "whl/cu128 torch"),
        (
            TorchState("2.13.0+cu130", "13.0", 0, TWO, (12, 8), TOO_OLD),
            "failure",
            "sudo ubuntu-drivers install  # or: python3 -m pip install --force-reinstall --index-url "
            "https://download.pytorch.org/whl/cu128 torch",
        ),
        (
            TorchState("2.13.0+cu130", "13.0", 0, TWO, (13, 0), "Error 802: not yet initialized"),
            "failure",
            "fabricmanager",
        ),
        (TorchState("2.13.0+cu130", "13.0", 0, TWO, (11, 4), "too old"), "failure", "ubuntu-drivers"),
        (TorchState("2.13.0+cpu", None, 0, TWO, (14, 1)), "failure", "whl/cu130 torch"),
        (TorchState("2.13.0+cu130", "13.0", 0, TWO, (13, 0), "hidden"), "failure", "nvidia-smi"),
    ],
)
def test_torch_and_the_driver(seen: TorchState, status: str, fix: str) -> None:
    found = assess(seen)
    assert "\n" not in found.figure
    assert (found.status, fix in found.fix) == (status, True)


def test_products_against_the_data_sheet() -> None:
    assert speed.assess_flops(0, 788e12, peak=989.4e12).figure.endswith("80% of its peak of 989")
    assert speed.assess_flops(0, 300e12, peak=989.4e12).status == "warning"
    assert speed.assess_flops(0, 1e12, peak=None).status == "ok"


def test_exchange_that_is_not_over_nvlink() -> None:
    measured = {
        "backend": "nccl",
        "size": 8,
        "num_bytes": 2**28,
        "bytes_per_second": 10e9,
        "bus_bytes_per_second": 17.5e9,
    }
    assert all_reduce.assess(measured, has_nvlink=True).status == "warning"
    assert all_reduce.assess(measured, has_nvlink=False).status == "ok"
    assert "nothing to exchange" in all_reduce.assess({**measured, "size": 1}, has_nvlink=False).figure


IS_READY = f"print({all_reduce.READY!r}, flush=True)"
MEASURED = json.dumps({"backend": "nccl", "size": 1, "num_bytes": 1, "bytes_per_second": 1, "bus_bytes_per_second": 0})
HANGS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


@pytest.mark.parametrize(
    ("code", "limit", "status", "words"),
    [
        (f"{IS_READY}; raise RuntimeError('NCCL')", 180.0, "failure", "RuntimeError: NCCL"),
        ("raise ImportError('torch')", 180.0, "failure", "ImportError: torch"),
        (f"{IS_READY}; {HANGS}", 0.5, "failure", "no answer within"),
    ],
)
def test_ranks_that_fail_or_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, limit: float, status: str, words: str
) -> None:
    ranks: list[subprocess.Popen[str]] = []

    def start(rank: int, size: int, port: int) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        hangs = tmp_path / str(rank)
        words = [sys.executable, "-c", code, hangs]
        ranks.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True))
        while not hangs.exists() and ranks[-1].poll() is None:
            time.sleep(0.02)
        return ranks[-1]

    monkeypatch.setattr(all_reduce, "_start", start)
    monkeypatch.setattr(all_reduce, "LIMIT_SECONDS", limit)
    (found,) = all_reduce.all_reduce([])
    assert found.status == status
    assert words in found.figure
    assert all(rank.returncode in (1, -signal.SIGKILL) for rank in ranks)


def test_the_time_of_a_cold_disk_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Imports of 1,000 s, by the doctor's clock, before an exchange that may take 180 s."""
    is_imported = tmp_path / "imported"

    def start(rank: int, size: int, store: Path) -> subprocess.Popen[str]:
        code = f"import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); {IS_READY}; print({MEASURED!r})"
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code, is_imported], stdout=pipe, stderr=pipe, text=True)

    monkeypatch.setattr(all_reduce, "_start", start)
    monkeypatch.setattr(all_reduce, "LIMIT_SECONDS", 180)
    monkeypatch.setattr(all_reduce, "time", SimpleNamespace(monotonic=lambda: 1000.0 * is_imported.exists()))
    (found,) = all_reduce.all_reduce([])
    assert (found.status, "nothing to exchange" in found.figure) == ("ok", True), found.figure
