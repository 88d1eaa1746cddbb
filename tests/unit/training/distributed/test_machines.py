"""What the machines of a run must have in common, and what of them is logged."""

from collections.abc import Sequence
from typing import Any

import pytest

from pretraining.errors import UserError
from pretraining.system.files import code_hash
from pretraining.system.machines import meeting
from pretraining.training.distributed import machines
from pretraining.training.distributed.machines import (
    agree_on_run,
    describe_machine,
    distinct,
    meet_machines,
    other_gpus,
    other_run,
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


def test_on_one_machine_there_is_no_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    meet_machines()
    assert meeting._meeting is None
    assert machines.machines() == []


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


SETTINGS = {
    "flags": {"--learning_rate": 3e-4, "--save_steps": 500},
    "resolved": {"schedule": {"peak": 3e-4}, "ds_config": {"offload_param": {"nvme_path": "/a", "buffer_count": 5}}},
}


def process(host: str, manifests: Sequence[str] = ("a" * 64,), **settings: Any) -> dict[str, Any]:
    names = [f"/disk of {host}/blocks-{number}" for number in range(len(manifests))]
    return {"host": host, "names": names, "manifests": list(manifests), **SETTINGS, **settings}


def test_other_blocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    agree_on_run(["news"], ["a" * 64], SETTINGS, seconds=1)  # on one machine
    first, copied = process("node-a", ["a" * 64, "c" * 64]), process("node-b", ["a" * 64, "c" * 64])
    assert other_run(copied, first) == []
    found = [first, copied, *2 * [process("node-c", ["b" * 64, "c" * 64])]]
    monkeypatch.setattr(machines, "gather", lambda *_, **_options: found)
    with pytest.raises(
        UserError, match=r"^node-c: --dataset /disk of node-c/blocks-0: has other blocks .* b{12}; node-a has a{12}\)"
    ) as raised:
        agree_on_run(["news", "code"], ["a" * 64, "c" * 64], SETTINGS, seconds=1)
    assert len(raised.value.problems) == 1, "one line for two processes of a machine"


def test_another_number_of_data_sets_is_named() -> None:
    (line,) = other_run(process("node-b", ["a" * 64, "c" * 64]), process("node-a"))
    assert line.startswith(
        "node-b: --dataset: is /disk of node-b/blocks-0 /disk of node-b/blocks-1; node-a has /disk of node-a/blocks-0; "
    )


def test_other_flags_are_named_and_not_what_follows_from_them() -> None:
    flags, resolved = {"--learning_rate": 1e-4, "--save_steps": 500}, {"schedule": {"peak": 1e-4}}
    resolved = {**SETTINGS["resolved"], **resolved}
    found = other_run(process("node-b", flags=flags, resolved=resolved), process("node-a"))
    assert found == ["node-b: --learning_rate: is 0.0001; node-a has 0.0003; type the same flags on all machines"]
    (line,) = other_run(process("node-b", resolved=resolved), process("node-a"))
    assert line.startswith("node-b: schedule.peak: is 0.0001; node-a has 0.0003; use the same flags, recipe and ")


def test_a_path_on_the_disk_of_a_machine_may_differ() -> None:
    resolved: dict[str, Any] = {"schedule": {"peak": 3e-4}, "ds_config": {"offload_param": {"nvme_path": "/b"}}}
    resolved["ds_config"]["offload_param"]["buffer_count"] = 5
    assert other_run(process("node-b", resolved=resolved), process("node-a")) == []
