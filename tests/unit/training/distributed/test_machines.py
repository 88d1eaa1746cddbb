"""What the machines of a run must have in common, and what of them is logged."""

from typing import Any

import pytest

from pretraining.errors import UserError
from pretraining.training.distributed import machines
from pretraining.training.distributed.machines import (
    agree_on_blocks,
    code_hash,
    describe_machine,
    distinct,
    other_gpus,
    other_software,
    software,
)


def machine(host: str, *, gpus: tuple[str, ...] = (), driver: str | None = None, **versions: str) -> dict[str, Any]:
    return {
        "host": host,
        "num_cpu_cores": 16,
        "memory_bytes": 128e9,
        "gpus": [{"name": name, "memory_bytes": 1} for name in gpus],
        "driver": driver,
        "commit": "0123456789abcdef",
        "software": {"this project": "aaa", "torch": "2.13.0", **versions},
    }


def test_other_versions_are_named_with_host_and_both_values() -> None:
    found = [machine("node-a"), machine("node-b", torch="2.12.0"), machine("node-c", **{"this project": "bbb"})]
    assert [line.split(";")[0] for line in other_software(found)] == [
        "node-b: has another version of torch (2.12.0",
        "node-c: has another version of this project (files bbb of commit 0123456789ab",
    ]
    assert "node-a has 2.13.0)" in next(iter(other_software(found)))
    assert list(other_software([machine("node-a"), machine("node-b")])) == []


def test_other_gpus_are_a_warning() -> None:
    first = machine("node-a", gpus=("NVIDIA H200",) * 2, driver="570")
    others = [machine("node-b", gpus=("NVIDIA A40",), driver="570"), machine("node-c", gpus=("NVIDIA H200",))]
    assert [line[:54] for line in other_gpus([first, *others])] == [
        "node-b: has other GPUs (NVIDIA A40) than node-a (NVIDI",
        "node-c: has driver None, node-a has 570",
    ]


def test_machines_are_counted_by_their_processes() -> None:
    found = distinct([machine("node-a"), machine("node-a"), machine("node-b", gpus=("NVIDIA H200",) * 8)])
    assert [describe_machine(each) for each in found] == [
        "node-a (2 processes, 16 cores, 128.0 GB)",
        "node-b (1 process, 8 x NVIDIA H200, 16 cores, 128.0 GB)",
    ]


def test_the_software_of_this_machine() -> None:
    assert software()["this project"] == code_hash()[:12]
    assert {"Python", "torch", "deepspeed", "transformers"} <= software().keys()


def test_other_blocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    agree_on_blocks(["news"], ["a" * 64], seconds=1)  # on one machine
    found = [{"host": host, "manifests": [digit * 64, "c" * 64]} for host, digit in (("node-a", "a"), ("node-b", "b"))]
    monkeypatch.setattr(machines, "gather", lambda *_, **_options: found)
    with pytest.raises(UserError, match=r"^node-b: --dataset news: has other blocks .* b{12}; node-a has a{12}\)"):
        agree_on_blocks(["news", "code"], ["a" * 64, "c" * 64], seconds=1)
