"""mpirun as the doctor finds it: none, Open MPI's for root and for others, and one of another MPI."""

import os
from pathlib import Path

import pytest

from pretraining.doctor import software


def mpirun_finding(monkeypatch: pytest.MonkeyPatch, folder: Path, programs: list[str], *, user: int) -> str:
    for name in programs:
        (folder / name).touch(mode=0o755)
    for name in software.ROOT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    (found,) = software.mpi_launcher([])
    assert found.status == "ok"
    return found.figure


@pytest.mark.parametrize(
    ("programs", "user", "rejects"),
    [
        (["mpirun", "ompi_info"], 0, True),
        (["mpirun", "ompi_info"], 1000, False),
        (["mpirun"], 0, False),  # of another MPI
    ],
)
def test_root_needs_a_flag_of_open_mpi(
    programs: list[str], user: int, rejects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = mpirun_finding(monkeypatch, tmp_path, programs, user=user)
    assert figure.startswith(str(tmp_path / "mpirun"))
    assert ("--allow-run-as-root" in figure) == rejects


def test_variables_of_open_mpi_allow_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpirun_finding(monkeypatch, tmp_path, ["mpirun", "ompi_info"], user=0)
    for name in software.ROOT_VARIABLES:
        monkeypatch.setenv(name, "1")
    (found,) = software.mpi_launcher([])
    assert "--allow-run-as-root" not in found.figure


def test_mpirun_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not found" in mpirun_finding(monkeypatch, tmp_path, [], user=0)
