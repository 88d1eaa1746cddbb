import multiprocessing
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.planning.fit import fits
from pretraining.planning.footprint import footprint
from pretraining.planning.layout import MachineSpec
from pretraining.system.launchers import launcher_identity
from pretraining.training.dry_run import micro_batch
from pretraining.training.dry_run.micro_batch import (
    FITS,
    OUT_OF_MEMORY,
    _failure,
    candidates,
    from_first_rank,
    with_largest_micro_batch,
)
from tests.conftest import PROJECT_DIR
from tests.unit.planning.layouts import layout_of

LAYOUT = replace(layout_of("llama2_7b", num_gpus=8), checkpoint_every=1)


def machine(gpu_bytes: int | None, host_bytes: int | None) -> MachineSpec:
    return MachineSpec("here", 8, 8, gpu_bytes, None, host_bytes)


def test_the_candidates_are_the_divisors_that_may_fit_the_largest_first() -> None:
    assert candidates(LAYOUT, machine(10**15, 0), 12) == [12, 6, 4, 3, 2, 1], "host memory is not asked on a GPU"
    counted = footprint(replace(LAYOUT, micro_batch_blocks=4)).counted.gpu_bytes
    assert candidates(LAYOUT, machine(counted, None), 12) == [4, 3, 2, 1]
    assert not fits(replace(LAYOUT, micro_batch_blocks=4), machine(counted, None)), "with what is assumed"
    assert candidates(LAYOUT, machine(10**9, None), 12) == []
    needed = footprint(replace(LAYOUT, micro_batch_blocks=2), has_gpu=False)
    assert candidates(LAYOUT, machine(None, needed.host_bytes), 12) == [2, 1]
    assert candidates(LAYOUT, machine(None, needed.counted.host_bytes), 12) == [1], "on a CPU what is assumed counts"


def test_the_candidates_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a planned GPU with 80 GB, where each trial fits."""
    monkeypatch.setattr(micro_batch, "this_machine", lambda: MachineSpec("one", 1, 1, 80 * 10**9, None, None))
    monkeypatch.setattr(micro_batch, "run_trial", lambda *_: FITS)
    words = ["--model", "tinyllama_1b", "--per_device_train_batch_size", "auto", "--output_dir", str(tmp_path / "run")]
    words += ["--deepspeed", str(PROJECT_DIR / "ds_config.json")]

    def found(*limit: str) -> int:
        arguments = with_largest_micro_batch(parse_pretrain_arguments("", [*words, *limit]), None)
        return arguments.trainer["per_device_train_batch_size"]

    assert found() > found("--gpu_memory_limit", "40GB") >= 1


def test_after_a_trial_out_of_memory_fewer_blocks_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def run_trial(number: int, _: int) -> str:
        tried.append(number)
        return FITS if number <= 2 else OUT_OF_MEMORY

    monkeypatch.setattr(micro_batch, "this_machine", lambda: MachineSpec("one", 1, 1, 10**12, None, None))
    monkeypatch.setattr(micro_batch, "run_trial", run_trial)
    words = ["--model", "tinyllama_1b", "--per_device_train_batch_size", "auto", "--output_dir", str(tmp_path / "run")]
    words += ["--deepspeed", str(PROJECT_DIR / "ds_config.json"), "--global_batch_blocks", "8"]
    words += ["--global_batch_tokens", "none"]
    arguments = with_largest_micro_batch(parse_pretrain_arguments("", words), None)
    assert (tried, arguments.trainer["per_device_train_batch_size"]) == ([8, 4, 2], 2)


def test_only_what_ran_out_of_memory_does_not_fit() -> None:
    assert _failure(-9, "") == OUT_OF_MEMORY
    assert _failure(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate") == OUT_OF_MEMORY
    assert _failure(1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory") == OUT_OF_MEMORY
    assert _failure(2, "some warning\nerror: --dataset x: is missing\n") == "--dataset x: is missing"
    assert _failure(1, "Traceback\nValueError: no\n") == "ValueError: no"


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def fail() -> int:
    raise AssertionError("only the first rank tries")


def test_all_ranks_have_what_the_first_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    as_rank(monkeypatch, 1)
    monkeypatch.setenv("PRETRAINING_LAUNCHER", launcher_identity())  # of which the pool is a child
    with multiprocessing.get_context("fork").Pool(1) as pool:
        other = pool.apply_async(from_first_rank, (fail,))
        as_rank(monkeypatch, 0)
        assert from_first_rank(lambda: 7) == 7
        assert other.get(60) == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["open folder", "link"])
def test_a_folder_that_somebody_else_has_taken_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rank: int
) -> None:
    """Every case is in the tests of `private_dir`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    as_rank(monkeypatch, rank)
    folder, theirs = tmp_path / f"pretraining-{os.getuid()}-trial-{launcher_identity()}", tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "thesis.txt").write_text("years of work")
    make = partial(folder.symlink_to, theirs) if kind == "link" else folder.mkdir
    make()
    if kind == "open folder":
        folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder}: is not a folder that only this user can open"):
        from_first_rank(fail)
    assert (theirs / "thesis.txt").read_text() == "years of work"
