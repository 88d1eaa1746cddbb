"""Ills of a machine, planted: a small /dev/shm, a full disk, a closed folder, a lost process, a left lock."""

import re
import subprocess
import time
from email.utils import formatdate
from pathlib import Path

import pytest
import torch

from pretraining.doctor import environment, software
from pretraining.doctor.host import assess_shared_memory
from pretraining.doctor.hub import assess_clock
from pretraining.system.torch_environment import ALLOCATOR_VARIABLE, OLD_ALLOCATOR_VARIABLES
from tests.conftest import PROJECT_DIR, within_mount
from tests.fakes.doctoring import diagnose_some, find, findings

pytestmark = pytest.mark.launch

MEGABYTE = 2**20


def test_a_containers_shared_memory_is_seen() -> None:
    """64 MB, as Docker gives them, in a separate name space."""
    within = within_mount("mount -t tmpfs -o size=64m none /dev/shm")
    done = diagnose_some("shared memory", "--json", launcher=within)
    found = find(done, "shared memory", "warning")
    assert found["figures"]["total_bytes"] == 64 * MEGABYTE
    assert "--ipc=host" in found["fix"]


def test_little_shared_memory_ends_runs_on_several_gpus_only() -> None:
    statuses = [
        assess_shared_memory(total * MEGABYTE, free * MEGABYTE, num_gpus=num_gpus).status
        for total, free, num_gpus in [(64, 64, 8), (64, 64, 1), (64, 64, 0), (64_000, 10, 8), (64_000, 60_000, 8)]
    ]
    assert statuses == ["failure", "warning", "warning", "warning", "ok"]


def test_a_small_disk_and_a_full_one(small_disk: Path) -> None:
    folders = ["--run_folder_or_disk", small_disk / "not/yet/there"]
    done = diagnose_some("disk", "--json", *folders)
    assert "3.1 MB of 3.1 MB free, tmpfs" in findings(done)[0]["figure"]
    assert [found["status"] for found in findings(done)] == ["warning", "warning", "failure"]  # room, in memory, full
    assert "No space left on device" in findings(done)[2]["figure"]
    assert list(small_disk.iterdir()) == []
    (small_disk / "full").write_bytes(bytes(3 * MEGABYTE))
    done = diagnose_some("disk", "--json", *folders, Path.cwd())
    assert " of 3.1 MB free" in findings(done)[0]["figure"]
    figures = findings(done)[0]["figures"]
    assert figures["free_bytes"] < figures["total_bytes"] / 3
    assert "No space left on device" in find(done, "disk speed", "failure")["figure"]
    assert done.returncode == 1
    assert [path.name for path in small_disk.iterdir()] == ["full"]
    assert {found["name"] for found in findings(done)[3:]} == {"disk", "disk speed"}


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    if subprocess.run(["chattr", "+i", closed], capture_output=True, check=False).returncode:
        pytest.skip("may not close a folder here")
    try:
        done = diagnose_some("disk", "--json", "--run_folder_or_disk", closed)
    finally:
        subprocess.run(["chattr", "-i", closed], check=True)
    assert "cannot be written (Operation not permitted)" in find(done, "disk speed", "failure")["figure"]


@pytest.mark.parametrize(("gpus", "status"), [(["x"], "warning"), ([], "ok")])
def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[str], status: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(software, "driver_gpu_names", lambda: gpus)
    (found,) = software.compilers([])
    expected = "none; --compile_layers is rejected: there is no C++ compiler (g++); install g++, or set CXX"
    assert (found.status, found.figure.startswith(expected)) == (status, bool(gpus))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("expandable_segments:True,roundup_power2_divisions:[256:1,512:2,>:4], max_split_size_mb:20", ""),
        ("expandable_segment:True,backend:native,foo:1", "has options that torch rejects: expandable_segment, foo"),
        ("max_split_size_mb:19", "max_split_size_mb is 19; torch rejects less than 20"),
    ],
)
def test_the_options_of_the_allocator_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", value)
    found = [finding.figure for finding in environment.variables([]) if finding.name == "PYTORCH_ALLOC_CONF"]
    assert found == ([words] if words else [])


@pytest.mark.parametrize("old", OLD_ALLOCATOR_VARIABLES)
def test_an_old_name_beside_the_new_one(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    for name in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(old, "backend:native")
    assert not [finding for finding in environment.variables([]) if "ALLOC_CONF" in finding.name]
    monkeypatch.setenv(ALLOCATOR_VARIABLE, "backend:native")
    (found,) = [finding for finding in environment.variables([]) if "ALLOC_CONF" in finding.name]
    assert (found.status, found.name, found.fix) == ("warning", old, f"unset {old}")
    assert found.figure == "is set, and so is PYTORCH_ALLOC_CONF, its new name"


def test_torch_knows_the_options_of_the_allocator() -> None:
    """The options of any GPU in torch's library, and those of NVIDIA's in its header, where a name is in two parts."""
    torch_dir = Path(torch.__file__).parent
    library = (torch_dir / "lib/libc10.so").read_bytes()
    header = (torch_dir / "include/c10/cuda/CUDAAllocatorConfig.h").read_text()
    keys = re.sub(r"//.*|\"\s+\"", "", header.partition("keys{")[2].partition("}")[0])
    options = set(environment.ALLOCATOR_OPTIONS.split())
    of_cuda = set(re.findall(r'"(\w+)"', keys))
    assert of_cuda <= options
    assert {name for name in options - of_cuda if name[-12:].encode() not in library} == set()


def test_a_clock_that_is_behind() -> None:
    (found,) = assess_clock(formatdate(time.time() + 3600, usegmt=True))
    assert (found.status, found.figure[:26]) == ("warning", "60 min behind the Hub's: s")
    assert list(assess_clock(formatdate(time.time() + 60, usegmt=True))) == []


def test_nothing_is_left_in_the_checkout() -> None:
    assert not list(PROJECT_DIR.glob(".doctor-*"))
