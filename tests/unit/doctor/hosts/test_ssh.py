"""The command that is sent to a host, run by the shell that ssh would start, and what each way to fail means."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretraining import PROJECT_DIR
from pretraining.doctor.hosts.ssh import (
    NO_FOLDER,
    NO_INTERPRETER,
    NO_PROJECT,
    SSH_FAILED,
    assess_end,
    command_of,
)


def test_the_command_changes_the_folder_and_starts_the_same_interpreter(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "it's a folder; $HOME"
    folder.mkdir()
    monkeypatch.chdir(folder)
    python = tmp_path / "python 3"
    python.write_text("#!/bin/sh\npwd; env; echo words: $@\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    command = command_of("pretraining.doctor.all_reduce", "env", "-u", "HOME", variables={"RANK": "x y"})
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd="/")
    lines = done.stdout.splitlines()
    assert lines[0] == str(folder)
    assert {"RANK=x y", f"PYTHONPATH={PROJECT_DIR}", "words: -m pretraining.doctor.all_reduce"} <= set(lines)
    assert not any(line.startswith("HOME=") for line in lines)


def test_each_thing_that_is_missing_there_has_an_exit_code(tmp_path: Path, monkeypatch) -> None:
    def code() -> int:
        return subprocess.run(["sh", "-c", command], cwd="/", stderr=subprocess.DEVNULL).returncode

    command = command_of("pretraining.doctor.nothing")
    assert code() == NO_PROJECT
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    command = command_of("pretraining.doctor.all_reduce")
    assert code() == NO_INTERPRETER
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    command = command_of("pretraining.doctor.all_reduce")
    (tmp_path / "gone").rmdir()
    assert code() == NO_FOLDER


@pytest.mark.parametrize(
    ("message", "name", "words"),
    [
        ("ssh: Could not resolve hostname nod-b: Name or service not known", "name resolution", "is not known here"),
        ("root@node-b: Permission denied (publickey,password).", "ssh", "asks for a password"),
        ("Host key verification failed.", "ssh", "its key is not known"),
        ("ssh: connect to host node-b port 22: Connection refused", "ssh", "no ssh server answers"),
        ("ssh: connect to host node-b port 22: No route to host", "ssh", "cannot be reached (ssh: connect to host"),
    ],
)
def test_a_message_of_ssh_gets_its_remedy(message: str, name: str, words: str) -> None:
    finding = assess_end("node-b", SSH_FAILED, f"banner\n{message}\n")
    assert (finding.status, finding.name) == ("failure", name)
    assert finding.figure.startswith("node-b: ")
    assert words in finding.figure
    assert "node-b" in finding.fix


def test_what_is_missing_there_is_named_with_its_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code, path in {NO_FOLDER: tmp_path, NO_INTERPRETER: sys.executable, NO_PROJECT: PROJECT_DIR}.items():
        finding = assess_end("node-b", code, "")
        assert str(path) in finding.figure
        assert str(path) in finding.fix
    assert "ImportError: x" in assess_end("node-b", 1, "Traceback\nImportError: x\n").figure
