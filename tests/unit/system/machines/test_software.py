"""Package versions, and the commit of the code from git or from an image."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from pretraining.system.machines import software
from pretraining.system.machines.software import commit, git_state, package_versions, versions_to_compare

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("built_from", "state"),
    [
        (COMMIT, {"commit": COMMIT, "is_dirty": False}),
        (f"{COMMIT}-dirty", {"commit": COMMIT, "is_dirty": True}),
        ("", None),
        (None, None),
    ],
)
def test_an_image_has_the_commit_it_was_built_from(
    built_from: str | None, state: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "PROJECT_DIR", tmp_path)
    monkeypatch.delenv(software.COMMIT_VARIABLE, raising=False)
    if built_from is not None:
        monkeypatch.setenv(software.COMMIT_VARIABLE, built_from)
    assert git_state() == state
    assert commit() == (state and COMMIT)


def test_a_repository_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True)
    monkeypatch.setattr(software, "PROJECT_DIR", tmp_path)
    monkeypatch.setenv(software.COMMIT_VARIABLE, COMMIT)
    state = git_state()
    assert state is not None
    assert state["commit"] != COMMIT
    assert not state["is_dirty"]
    tracked = tmp_path / "a.py"
    tracked.touch()
    subprocess.run(["git", "-C", tmp_path, "add", tracked], check=True)
    assert git_state() == {"commit": commit(), "is_dirty": True}


def test_git_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\ncase $* in *rev-parse*) echo {COMMIT} ;; *) exec sleep 600 ;; esac\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(software, "GIT_SECONDS", 0.5)
    assert git_state() == {"commit": COMMIT, "is_dirty": True}, "whether it is not, is not known"


def test_the_checkout_of_another_user_has_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True)
    monkeypatch.setattr(software, "PROJECT_DIR", tmp_path)
    monkeypatch.delenv(software.COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # of git, for its own tests
    assert commit() is not None


def test_what_must_be_the_same_on_all_machines() -> None:
    found = versions_to_compare()
    assert list(found) == ["Python", "torch", "transformers", "deepspeed", "tokenizers", "accelerate", "triton"]
    assert found["Python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["triton"] == (package_versions()["triton"] or "none")
