import os
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.system.launchers import launcher_identity
from pretraining.training.dry_run import trial
from pretraining.training.dry_run.micro_batch import largest
from pretraining.training.dry_run.trial import FITS, OUT_OF_MEMORY, TrialRendezvous, _outcome

SIZES = [1, 2, 4, 8, 16]


def found(limit: int, begin: int) -> tuple[int | None, list[int]]:
    tried = []

    def does_fit(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return largest(SIZES, does_fit, begin=begin), tried


def test_the_largest_is_found_from_wherever_the_plan_begins() -> None:
    for limit in (0, *SIZES):
        for begin in range(len(SIZES)):
            assert found(limit, begin)[0] == (limit or None)


def test_a_plan_that_is_right_takes_two_trials() -> None:
    assert found(4, begin=2) == (4, [4, 8])
    assert found(16, begin=4) == (16, [16])


def test_only_what_ran_out_of_memory_does_not_fit() -> None:
    assert _outcome(0, "") == FITS
    assert _outcome(-9, "") == OUT_OF_MEMORY
    assert _outcome(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate") == OUT_OF_MEMORY
    assert _outcome(1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory") == OUT_OF_MEMORY
    assert _outcome(2, "some warning\nerror: --dataset x: is missing\n") == "--dataset x: is missing"
    assert _outcome(1, "Traceback\nValueError: no\n") == "ValueError: no"


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("kind", ["folder of another user", "open folder", "link", "file"])
def test_a_place_that_somebody_else_has_taken_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rank: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(trial, "_PLACES", iter([0]))
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    folder, theirs = tmp_path / f"pretraining-{os.getuid()}-trial-{launcher_identity()}-0", tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "thesis.txt").write_text("years of work")
    if kind == "link":
        folder.symlink_to(theirs)
    elif kind == "file":
        folder.write_text("years of work")
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "open folder" else 0o700)
    if kind == "folder of another user":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder to another user")
        os.chown(folder, 65534, 65534)
    with pytest.raises(UserError, match=f"{folder}: is not a folder that only this user can open"):
        TrialRendezvous()
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_a_place_is_removed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    with TrialRendezvous() as place:
        assert place.from_first(lambda: 7) == 7
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
