"""What the answers of several hosts mean: of machines with GPUs, which are not at hand, and of clocks that differ."""

from pathlib import Path
from typing import Any

import pytest

from pretraining.doctor.finding import Finding
from pretraining.doctor.hosts import assessment
from pretraining.doctor.hosts.hostfile import Host

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85 * 10**9}
A100 = {"name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 85 * 10**9}
HOST: dict[str, Any] = {
    "versions": {"Python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8"},
    "commit": "0123456789abcdef",
    "code": "fedcba9876543210",
    "num_cpu_cores": 8,
    "memory_bytes": 10**12,
    "driver": "580.1",
    "gpus": [H100] * 8,
    "run_folder": {"folder": "/shared", "problem": ""},
    "datasets": {},
    "addresses": ["172.17.0.1", "10.0.0.1"],
}


def facts(**changes: Any) -> dict[str, dict[str, Any]]:
    """Two hosts of which the second has the changes."""
    return {"node-a": HOST, "node-b": {**HOST, **changes}}


def shown(findings: list[Finding]) -> list[tuple[str, str]]:
    """Status and figure; each remedy has to be there."""
    assert all(finding.fix for finding in findings if finding.status != "ok")
    return [(finding.status, finding.figure) for finding in findings]


def test_equal_software_is_one_line() -> None:
    ((status, figure),) = shown(list(assessment.assess_software(facts())))
    assert status == "ok"
    assert figure == "Python 3.11.7, torch 2.13.0, deepspeed 0.19.8, commit 0123456789ab, files fedcba987654 on 2 hosts"


def test_other_versions_and_other_code_are_named_by_host() -> None:
    other = facts(versions={"Python": "3.11.7", "torch": "2.12.1"}, code="0" * 16)
    versions, code = shown(list(assessment.assess_software(other)))
    assert versions == ("failure", "node-b: torch 2.12.1 (node-a: 2.13.0), deepspeed none (node-a: 0.19.8)")
    assert code[0] == "failure"
    assert code[1].startswith(
        "node-b: other code, commit 0123456789ab, files 000000000000 (node-a: commit 0123456789ab, files fed"
    )


@pytest.mark.parametrize(
    ("slots", "changes", "expected"),
    [
        (8, {}, [("ok", "8 x NVIDIA H100 80GB HBM3, driver 580.1 on 2 hosts")]),
        (9, {}, [("failure", "node-a: 9 slots, but it has 8 GPUs"), ("failure", "node-b: 9 slots, but it has 8 GPUs")]),
        (8, {"gpus": [A100] * 8}, [("warning", "node-b: 8 x NVIDIA A100-SXM4-80GB, driver 580.1 (node-a: 8 x NVIDIA")]),
        (8, {"driver": "550.2"}, [("warning", "node-b: 8 x NVIDIA H100 80GB HBM3, driver 550.2 (node-a: ")]),
        (33, {"gpus": [], "driver": None}, [("failure", "node-a: 33 slots"), ("failure", "node-b: 33 slots, but it has"
                                            " no GPU and 8 cores"), ("warning", "node-b: no GPU (node-a: 8 x NVIDIA")]),
    ],
)  # fmt: skip
def test_slots_and_kinds_of_gpus(slots: int, changes: dict, expected: list) -> None:
    hosts = [Host("node-a", slots), Host("node-b", slots)]
    *found, memory = shown(list(assessment.assess_hardware(hosts, facts(**changes))))
    assert memory == ("ok", "1,000.0 GB on node-a, which a plan has to count")
    assert len(found) == len(expected)
    for (status, figure), (expected_status, words) in zip(found, expected, strict=True):
        assert (status, figure[: len(words)]) == (expected_status, words)


def test_the_smallest_memory_is_named() -> None:
    *_, memory = shown(list(assessment.assess_hardware([], facts(memory_bytes=5 * 10**11))))
    assert memory == ("warning", "500.0 GB on node-b, which a plan has to count; another host has 1,000.0 GB")


BOTH = {"node-a": ["node-a", "node-b"], "node-b": ["node-a", "node-b"]}
ALONE = {"node-a": ["node-a"], "node-b": ["node-b"]}


@pytest.mark.parametrize(
    ("own", "seen", "status", "words"),
    [
        ({}, BOTH, "ok", "runs/x: one folder on 2 hosts (/shared)"),
        (
            {},
            ALONE,
            "failure",
            "node-b: /shared is not the folder of node-a; checkpoints need one that all hosts share",
        ),
        ({}, {**BOTH, "node-b": ["node-b"]}, "failure", "node-b: /shared is not the folder of node-a"),
        ({}, {"node-a": ["node-a"]}, "ok", "runs/x: one folder"),
        ({"folder": "/"}, BOTH, "failure", "node-b: runs/x would be created in /, on node-a in /shared"),
        ({"problem": "Read-only file system"}, BOTH, "failure", "node-b: /shared cannot be written (Read-only"),
    ],
)
def test_the_run_folder_has_to_be_one(own: dict, seen: dict, status: str, words: str) -> None:
    found = facts(run_folder={**HOST["run_folder"], **own})
    ((found_status, figure),) = shown(list(assessment.assess_run_folder(Path("runs/x"), found, seen)))
    assert (found_status, figure[: len(words)]) == (status, words)


def test_blocks_are_compared() -> None:
    whole, other = {"sha256": "a" * 64, "num_files": 5}, {"sha256": "b" * 64, "num_files": 5}
    missing = {"problem": "manifest.json is missing (No such file or directory)"}

    def found(first: dict, second: dict) -> list[tuple[str, str]]:
        stores = {"node-a": {**HOST, "datasets": {"x": first}}, "node-b": {**HOST, "datasets": {"x": second}}}
        return shown(list(assessment.assess_blocks(stores)))

    assert found(whole, whole) == [("ok", "x: 5 files on 2 hosts")]
    assert found(whole, other) == [
        ("failure", "node-b: x: its manifest has the hash bbbbbbbb, that of node-a aaaaaaaa")
    ]
    assert found(missing, whole) == [("failure", f"node-a: x: {missing['problem']}")]
    assert [status for status, _ in found(missing, missing)] == ["failure", "failure"]


def test_missing_blocks_are_copied_from_a_host_that_has_them() -> None:
    whole, missing = {"sha256": "a" * 64, "num_files": 5}, {"problem": "manifest.json is missing"}

    def fixes(first: dict, second: dict) -> list[str]:
        stores = {"node-a": {**HOST, "datasets": {"/x": first}}, "node-b": {**HOST, "datasets": {"/x": second}}}
        return [finding.fix for finding in assessment.assess_blocks(stores)]

    assert fixes(missing, whole) == ["ssh node-b 'rsync -a /x/ node-a:/x/'"]
    assert fixes(whole, missing) == ["ssh node-a 'rsync -a /x/ node-b:/x/'"]
    assert fixes(whole, {**whole, "sha256": "b" * 64}) == ["ssh node-a 'rsync -a /x/ node-b:/x/'"]
    assert fixes(missing, missing) == ["ssh node-a ls -l /x", "ssh node-b ls -l /x"]


def test_clocks_that_agree() -> None:
    assert assessment.assess_clocks({"node-a": 0.2, "node-b": -0.3}).figure == "differ by 0.5 s at most"


@pytest.mark.parametrize(
    ("skews", "words"),
    [
        ((0.1, -90.0, 0.2), "node-b: 90 s behind the others"),
        ((0, 90), "node-b: 90 s ahead of the others"),
        ((90, 0), "node-a: 90 s ahead of the others"),
        ((0, -90), "node-b: 90 s behind the others"),
        ((60, 60.2, 0), "node-c: 60 s behind the others"),  # this machine is wrong as well
        ((60, 61, 59, 0, 60), "node-d: 60 s behind the others"),
        ((0, 0, 90, 0), "node-c: 90 s ahead of the others"),
    ],
)
def test_the_clock_that_differs_from_most_is_named(skews: tuple[float, ...], words: str) -> None:
    found = assessment.assess_clocks({f"node-{letter}": skew for letter, skew in zip("abcde", skews, strict=False)})
    assert (found.status, found.figure) == ("warning", f"{words}: times in logs do not compare")
    assert found.fix.startswith(f"ssh {words[:6]} ")


def test_the_address_that_deepspeed_takes_has_to_reach() -> None:
    ((status, figure),) = shown(list(assessment.assess_address(facts(), {"node-b": ["172.17.0.1", "10.0.0.1"]})))
    assert (status, figure) == ("ok", "node-a is reached at 172.17.0.1")
    (found,) = assessment.assess_address(facts(), {"node-b": ["10.0.0.1"]})
    assert found.figure == "node-a: `hostname -I` begins with 172.17.0.1, which node-b cannot reach"
    assert found.fix.startswith("deepspeed --master_addr=10.0.0.1 ")
    (found,) = assessment.assess_address(facts(), {"node-b": []})
    assert found.figure == "node-b: cannot reach node-a at 172.17.0.1 10.0.0.1"
    assert assessment.address_for_all(facts(), {"node-b": ["10.0.0.1"]}) == "10.0.0.1"
    assert assessment.address_for_all(facts(), {"node-b": []}) is None
