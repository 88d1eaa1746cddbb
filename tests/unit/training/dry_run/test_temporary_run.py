"""--profile_plan: its folder is removed, and so are those of killed measurements; memory that runs out is one error."""

import os
from pathlib import Path

import pytest
import torch

from pretraining.data.mixture import load_mixture
from pretraining.errors import UserError
from pretraining.system.processes import ProcessHandle
from pretraining.training.dry_run.profile import profile_arguments
from pretraining.training.dry_run.temporary_run import (
    FOLDER_MARK,
    ProfileMemoryError,
    is_out_of_memory,
    temporary_folder,
)
from tests.unit.training.dry_run.test_profile import arguments


def test_folders_of_killed_measurements_are_removed(sample_store: Path, tmp_path: Path) -> None:
    flags = arguments(sample_store, tmp_path / "run", "--profile_plan")
    short = profile_arguments(flags, load_mixture([str(sample_store)], revision=None))
    own, dead = Path(short.trainer["output_dir"]), tmp_path / f"run{FOLDER_MARK}{2**22 + 1}-7"  # more than Linux counts
    parent = ProcessHandle.of(os.getppid())
    kept = {f"run{FOLDER_MARK}{parent.pid}-{parent.started}", f"run{FOLDER_MARK}notes", f"other{FOLDER_MARK}1-1", "run"}
    kept |= {"run.profile-2026-11", "run.profile-another-host-1-1"}
    for folder in (own, dead, *(tmp_path / name for name in kept)):
        folder.mkdir()
    with temporary_folder(flags, own):
        assert {path.name for path in tmp_path.iterdir()} == {*kept, own.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("NCCL error"), False),
        (UserError("--model: out of memory of the author"), False),
    ],
)
def test_memory_that_runs_out_is_an_error_with_a_remedy(
    error: Exception, is_memory: bool, sample_store: Path, tmp_path: Path
) -> None:
    flags = arguments(sample_store, tmp_path / "run", "--profile_plan")
    expected = ProfileMemoryError if is_memory else type(error)
    with pytest.raises(expected) as found, temporary_folder(flags, tmp_path / "run.profile-1-1"):
        raise error
    assert isinstance(found.value, ProfileMemoryError) == is_memory
    if is_memory:
        assert is_out_of_memory(str(found.value)), "the trial of a micro batch sees it"
